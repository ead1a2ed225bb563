"""The oracle for short answers in words."""

from __future__ import annotations

import re
from typing import Final

from steering_pts.data import Problem
from steering_pts.oracles.base import Judgement, Oracle, Verdict

MAX_CHARACTERS: Final = 200

_LABEL: Final = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer\s*(?:is\b\s*:?|:|=)", re.IGNORECASE)


class ExactOracle(Oracle):
    """Right is what reads like the gold answer.

    The whole completion, or its last line that is not empty (with or without a label such as
    `Answer:`), must equal the gold answer. Case, white space, and emphasis, quotes or a full stop
    around an answer do not count.
    """

    name = "exact"

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off."""
        lines = [line.strip() for line in completion.splitlines() if line.strip()]
        if not lines:
            return Judgement(Verdict.INCORRECT, None, "the completion is empty")
        answer = _LABEL.sub("", lines[-1]).strip() or lines[-1]
        gold = plain_words(problem.answer)
        if gold in {plain_words(completion), plain_words(lines[-1]), plain_words(answer)}:
            return Judgement(Verdict.CORRECT, answer, "it equals the gold answer")
        return Judgement(Verdict.INCORRECT, answer, f"it is not {problem.answer.strip()!r}")


def is_short_text(gold: str) -> bool:
    """Whether a gold answer can be compared as it stands: one line of at most 200 characters."""
    return len(gold.strip()) <= MAX_CHARACTERS and len(gold.strip().splitlines()) == 1


def plain_words(text: str) -> str:
    """A text without case, emphasis, quotes or a full stop around it, and with single spaces."""
    return " ".join(text.casefold().split()).strip("*_`\"'. ")
