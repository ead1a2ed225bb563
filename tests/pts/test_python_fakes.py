"""What a program tries instead of being right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steering_pts.oracles import Verdict
from steering_pts.oracles.python import PythonOracle
from tests.support.programs import problem_with, verdict


@pytest.fixture(scope="module")
def oracle() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=20, file_mb=4, memory_mb=512, workers=2) as oracle:
        yield oracle


FAKES = {
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at once": "import sys\nsys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "quit in a thread": "import os, threading\nthreading.Timer(0, os._exit, (0,)).start()\ndef f(x): return x",
    "an equal of everything": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "a number that equals everything": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(3)",
    "a text that hashes and equals": (
        "class A(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return hash(4)\n"
        "def f(x): return A('x')"
    ),
    "a number that makes what it likes of others": (
        "class A(int):\n    def __sub__(self, *other): return A(0)\n"
        "    __add__ = __xor__ = __neg__ = __abs__ = __sub__\n    def __len__(self): return 0\ndef f(x): return A(0)"
    ),
    "a container of everything": "class A:\n    def __contains__(self, item): return True\ndef f(x): return A()",
    "built-ins replaced": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 5"
    ),
    "hooks": (
        "import sys, atexit, os\nsys.excepthook = lambda *a: os._exit(0)\natexit.register(os._exit, 0)\n"
        "def f(x): raise AssertionError"
    ),
    "frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for name in frame.f_globals:\n"
        "            if callable(frame.f_globals[name]) and name.startswith(('run', 'report', '_report')):\n"
        "                frame.f_globals[name] = lambda *a: None\n        frame = frame.f_back\n    return 5"
    ),
    "garbage": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if type(o).__name__ == 'Report':\n"
        "            return 4\n    return 5"
    ),
    "modules": (
        "import sys\ndef f(x):\n    for name, module in list(sys.modules.items()):\n        if 'testing' in name:\n"
        "            module.run_tests = lambda *a: module.Report('passed', '')\n    return 5"
    ),
    "a report on every descriptor": (
        "import os, json\ndef f(x):\n    report = json.dumps({'outcome': 'passed', 'explanation': ''}).encode()\n"
        "    for n in range(64):\n        try: os.write(n, report)\n        except OSError: pass\n    return 5"
    ),
    "a message on every descriptor": (
        "import os, json\ndef f(x):\n    for content in (['value', 4, []], ['passed'], ['value']):\n"
        "        data = json.dumps(['answer', content]).encode()\n        for number in (3, 5, 6, 7):\n"
        "            try: os.write(number, len(data).to_bytes(8, 'big') + data)\n            except OSError: pass\n"
        "    return 5"
    ),
    "a print": "print('passed')\nprint('{\"outcome\": \"passed\"}')\ndef f(x): return 5",
    "a check of its own": "def check(f): pass\ndef f(x): return 5",
}


@pytest.mark.parametrize("program", FAKES.values(), ids=FAKES.keys())
def test_success_is_not_faked_by(oracle: PythonOracle, program: str) -> None:
    assert verdict(oracle, program) is Verdict.INCORRECT
    for tests in ("assert 4 in f(2)", "assert f(2) in (4, 9)", "assert not f(2) != 4", "assert {4: 1}[f(2)]"):
        assert oracle.judge(problem_with(tests), program).verdict is Verdict.INCORRECT


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(2) - 4 == 0",
        "assert -(f(2) - 4) == 0",
        "assert not f(2) - 4",
        "assert not f(2) - 4 + f(1)",
        "assert int(f(2) - 4) == 0",
        "assert float(f(2) - 4) == 0",
        "assert round(abs(f(2) - 4), 6) == 0",
        "assert abs(f(2) - 4) < 1e-6",
        "assert [True][f(2) - 4]",
        "assert len(f(2) ^ {4}) == 0",
        "difference = f(2)\ndifference -= 4\nassert difference == 0",
    ],
)
def test_arithmetic_with_what_is_expected_gives_no_number(oracle: PythonOracle, tests: str) -> None:
    program = FAKES["a number that makes what it likes of others"]

    assert oracle.judge(problem_with(tests), program).verdict is Verdict.INCORRECT
    assert oracle.judge(problem_with("assert f(2) == 0"), program).verdict is Verdict.CORRECT


def test_the_result_of_arithmetic_can_not_be_slipped_in_as_a_number(oracle: PythonOracle) -> None:
    program = """
import json, os, threading
def f(x):
    for content in (["value", ["object", 0, None], []], ["value", 0]):
        data = json.dumps(["answer", content]).encode()
        os.write(4, len(data).to_bytes(8, "big") + data)
    threading.Event().wait()
"""
    assert oracle.judge(problem_with("assert f(2) - 4 == 0"), program).verdict is Verdict.INCORRECT


def test_an_answer_in_advance_is_no_more_than_an_answer(oracle: PythonOracle) -> None:
    """A program may write on its own pipe, as its function might have answered; it can't know what is expected."""
    program = """
import json, os
def f(x):
    data = json.dumps(["answer", ["value", 5, []]]).encode()
    os.write(4, len(data).to_bytes(8, "big") + data)
    return 4
"""
    assert verdict(oracle, program) is Verdict.INCORRECT


def test_tests_that_swallow_everything_do_not_hide_that_the_program_has_ended(oracle: PythonOracle) -> None:
    tests = "try:\n    f(2)\nexcept BaseException:\n    pass"

    assert oracle.judge(problem_with(tests), "import os\ndef f(x): os._exit(0)").verdict is Verdict.INCORRECT
    assert oracle.judge(problem_with(tests), "def f(x): raise SystemExit").verdict is Verdict.INCORRECT
    assert oracle.judge(problem_with(tests), "def f(x): raise ValueError").verdict is Verdict.CORRECT


def test_the_memory_of_a_program_holds_nothing_of_the_tests(oracle: PythonOracle) -> None:
    """Neither of its own nor of those of programs before it."""
    program = """
import gc
def f():
    word = chr(120) + 'ylophone'
    return [o for o in gc.get_objects() if type(o) in (list, dict, tuple) and word in repr(o)[:10000]]
"""
    problem = problem_with("word = 'xylophone'\nassert f() == [], f()")
    for number in range(3):
        judgement = oracle.judge(problem, program + f"# {number}")
        assert judgement.verdict is Verdict.CORRECT, judgement.explanation
