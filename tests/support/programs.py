"""Problems whose answers are programs."""

from __future__ import annotations

import json
import textwrap

from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.oracles import Oracle, Verdict

PROMPT = 'from typing import List\n\n\ndef f(x: int) -> int:\n    """Twice x."""\n'
"""A prompt as HumanEval has them."""

_LINES = st.sampled_from(
    [
        "```python",
        "```",
        "````",
        "~~~",
        "```ruby",
        "def f(x):",
        "    return 2 * x",
        "f = 1",
        "text",
        "",
        " ```",
        "`",
    ]
)
TEXTS = st.lists(_LINES | st.text(max_size=6), max_size=12).map("\n".join)
"""Completions, most of them odd ones, that may define `f`."""


def problem_with(tests: str) -> Problem:
    """A problem whose gold answer is these tests."""
    return Problem("p", "Write it.", textwrap.dedent(tests))


def human_eval_problem(prompt: str, test: str, entry_point: str) -> Problem:
    """A problem in HumanEval's layout."""
    return Problem(
        "h", prompt, "    pass\n", {"test": test, "entry_point": entry_point, "task_id": "HumanEval/0"}
    )


def mbpp_problem(tests: list[str], setup: str = "", imports: list[str] | None = None) -> Problem:
    """A problem in MBPP's layout: lists are JSON, as `load_problems` leaves them."""
    fields = {
        "test_list": json.dumps(tests),
        "test_setup_code": setup,
        "test_imports": json.dumps(imports or []),
    }
    return Problem("m", "Write it.", "gold", fields)


def attempt(statements: str, imports: str = "") -> str:
    """A program whose `attempt()` tries the statements and says `done`, or the name of the error that stopped it."""
    body = textwrap.indent(textwrap.dedent(statements).strip(), "        ")
    return (
        f"import ctypes, os, resource, signal, socket, sys, time\n{imports}\ndef attempt():\n    try:\n{body}\n"
        "    except BaseException as error:\n        return type(error).__name__\n    return 'done'\n"
    )


FOUR = problem_with("assert f(2) == 4")
"""Asks for a function that makes 4 of 2."""


def verdict(oracle: Oracle, program: str) -> Verdict:
    """The verdict on a program that is to make 4 of 2."""
    return oracle.judge(FOUR, program).verdict


def refused(oracle: Oracle, statements: str) -> None:
    """Makes sure that a program may not do this."""
    problem = problem_with("assert attempt() in ('PermissionError', 'OSError', 'ValueError'), attempt()")
    judgement = oracle.judge(problem, attempt(statements))
    assert judgement.verdict is Verdict.CORRECT, judgement.explanation
