"""What an oracle is: it says whether a completion is right, and never guesses when it can't tell."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from steering_pts.closing import Closing
from steering_pts.data import Problem
from steering_pts.settings import JsonValue

AnswerWatcher = Callable[[str], bool]
"""Watches one completion: it is called with each piece of its text, in order.

It returns True from the piece on after which no continuation can change the verdict: the verdict on the text so far is
then that on every longer one. It may be late, never early, and how the text is cut into pieces does not matter beyond
that.
"""


class Verdict(StrEnum):
    """What became of a completion. Censored (cut off, or not to be judged) is not incorrect."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    CENSORED = "censored"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the answer that the completion gave (None without one), and why.

    `failed` says that the oracle is to blame: it raised, took too long or could not be asked. What failed is censored.
    """

    verdict: Verdict
    extracted: str | None
    explanation: str
    failed: bool = False

    def __post_init__(self) -> None:
        if self.failed and self.verdict is not Verdict.CENSORED:
            raise ValueError(f"a failed judgement is censored, not {self.verdict}")

    @classmethod
    def failure(cls, explanation: str, extracted: str | None = None) -> Self:
        """Censored, because the oracle failed; the explanation says how."""
        return cls(Verdict.CENSORED, extracted, explanation, failed=True)


class Oracle(Closing):
    """Judges completions, each on its own text alone.

    An oracle's options are the keyword arguments of its constructor, which are checked against their annotations when
    `make_oracle` makes it. `judge` may raise; `attempt`, `judge_many` and `judge_all` turn that into a failed
    judgement. `close` ends the processes and connections that an oracle may hold, may be called twice, and the oracle
    must not be used after it.
    """

    name: str
    """The name by which `make_oracle` makes it."""

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """The options by which `make_oracle` makes the same oracle anywhere; a run keeps them, so never a secret."""
        return {}

    @abstractmethod
    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off."""

    def judge_many(self, items: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """A judgement for each (problem, completion), in order; raises nothing.

        One after another, unless an oracle knows better.
        """
        return [self.attempt(problem, completion) for problem, completion in items]

    def attempt(self, problem: Problem, completion: str) -> Judgement:
        """The verdict of `judge`, or a failed judgement with what it raised."""
        try:
            return self.judge(problem, completion)
        except Exception as error:  # noqa: BLE001  # an oracle may be anyone's code
            return Judgement.failure(f"oracle {self.name} raised {type(error).__name__}: {error}")

    def misfit(self, problem: Problem) -> str | None:
        """Why no completion of this problem can be judged; None where nothing speaks against it."""
        del problem
        return None

    def watcher(self, problem: Problem) -> AnswerWatcher | None:
        """A fresh watcher for one completion of this problem; None where only its end decides."""
        del problem
        return None

    def close(self) -> None:
        """Ends what the oracle holds; most hold nothing."""
