"""What an oracle is: it says whether a completion is right, and never guesses when it can't tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from steering_pts.data import Problem


class Verdict(StrEnum):
    """What became of a completion. Censored (cut off, or not to be judged) is not incorrect."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    CENSORED = "censored"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the answer that the completion gave (None without one), and why."""

    verdict: Verdict
    extracted: str | None
    explanation: str


class Oracle(Protocol):
    """Judges completions, each on its own text alone.

    `judge` may raise; `judge_all` turns that into a censored judgement. `close` ends the processes
    that an oracle may hold, may be called twice, and the oracle must not be used after it.
    """

    @property
    def name(self) -> str:
        """The name by which `make_oracle` makes it."""

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off."""

    def close(self) -> None:
        """Ends what the oracle holds."""
