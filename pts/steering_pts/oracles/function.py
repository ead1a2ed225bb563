"""An oracle of one's own: any `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.base import Judgement, Oracle, Verdict


class FunctionOracle(Oracle):
    """Asks `function(problem, completion)`, which answers True, False, None (can't tell) or a `Judgement`."""

    def __init__(self, name: str) -> None:
        """Imports `module:function`; modules of the current folder are found too.

        Raises:
            OracleError: There is no such module or function, or the module can't be run.
        """
        self.name = name
        module_name, _, function_name = name.partition(":")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except Exception as error:  # a module may be anyone's code
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OracleError(f"oracle {name!r} can't be imported: {reason}") from error
        if not callable(function):
            raise OracleError(f"oracle {name!r} is a {type(function).__name__}, not a function")
        self._function: Callable[[Problem, str], object] = function

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The function's answer as a verdict.

        Raises:
            TypeError: The function answered something else.
        """
        answer = self._function(problem, completion)
        if isinstance(answer, Judgement):
            return answer
        if answer is None:
            return Judgement(Verdict.CENSORED, None, f"{self.name} can't tell")
        if isinstance(answer, bool):
            return Judgement(Verdict.CORRECT if answer else Verdict.INCORRECT, None, f"{self.name}: {answer}")
        raise TypeError(f"{self.name} answered {answer!r}; expected True, False, None or a Judgement")
