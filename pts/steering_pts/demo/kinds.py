"""Which planted decision a token of the demonstration model is, read off the text alone."""

import re
from collections.abc import Sequence
from typing import Final, Literal

from steering_pts.demo.problems import RULES, Problem, find_problem, opening

DecisionKind = Literal["strategy", "correction", "operand", "slip", "other"]

_MARKERS: Final = re.compile(r"<\|[a-z]+\|>")
_UNFINISHED_RESULT: Final = re.compile(r"=(?: \d+)?$")
_DIGIT: Final = re.compile(r" ?\d")


def decision_kind(prompt_and_prefix_text: str, token_text: str, alternatives: Sequence[str]) -> DecisionKind:
    """Name the planted decision that a token at a place takes.

    Args:
        prompt_and_prefix_text: everything before the token: the prompt, with its special tokens
            or without, and the completion so far.
        token_text: the token, with its leading space.
        alternatives: the other tokens that were likely at that place.

    Returns:
        ``strategy``: the word that settles the plan. ``operand``: the first digit of a
        bracket-difference solution, which settles it without a plan. ``correction``: whether a
        flawed solution turns back, taken or declined. ``slip``: a digit of a step's result, where
        alone a slip can enter. ``other``: anything else, and every place outside a solution.
    """
    found = find_problem(prompt_and_prefix_text)
    if found is None:
        return "other"
    problem, end = found
    solution = _MARKERS.sub("", prompt_and_prefix_text[end:])
    if solution == "Plan:":
        return "strategy" if token_text in (" precedence", " left") else "other"
    if not solution:
        return "operand" if token_text in _first_digits(problem) else "other"
    if _may_correct(problem, solution) and " Wait" in (token_text, *alternatives):
        return "correction"
    if _UNFINISHED_RESULT.search(solution) and _DIGIT.fullmatch(token_text):
        return "slip"
    return "other"


def _first_digits(problem: Problem) -> tuple[str, ...]:
    if RULES[problem.form].has_plan:
        return ()
    return opening(problem, "right"), opening(problem, "flawed")


def _may_correct(problem: Problem, solution: str) -> bool:
    """Whether a flawed solution stands between two sentences and has not turned back yet."""
    is_flawed = solution.startswith(opening(problem, "flawed"))
    return is_flawed and solution.endswith(".") and " Wait" not in solution
