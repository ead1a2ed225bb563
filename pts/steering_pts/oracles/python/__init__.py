"""The oracle for programs: does the code in a completion pass the problem's tests?"""

from steering_pts.oracles.python.oracle import PythonOracle

__all__ = ["PythonOracle"]
