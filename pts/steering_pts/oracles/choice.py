"""The oracle for multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.base import AnswerWatcher, Judgement, Oracle, Verdict
from steering_pts.oracles.choice_reading import ChoiceReader, ChoiceWords, read_choice
from steering_pts.oracles.choices import GoldKind, choices_of, gold_choice
from steering_pts.oracles.watching import LineWatcher
from steering_pts.settings import JsonValue


class ChoiceOracle(Oracle):
    """Right is a completion that makes the right choice, and no other.

    The choices come from the problem's fields (`choices`, `options`, ...) or from lines `A) ...` of its question;
    without either they are yes and no, or letters. `choice_reading` says how a completion's choice is read. A
    completion that makes no choice, or two at once, is incorrect; nothing is censored but completions of a problem that
    offers no choices.
    """

    name = "choice"

    def __init__(self, which: Literal["last", "first"] = "last", gold: GoldKind = "auto") -> None:
        """Sets how answers are read.

        Args:
            which: The answer that counts where a completion has several of the strongest kind. Reasoning weighs choices
                and corrects itself, hence `last`; `first` suits models that answer at once and then go on with a
                question of their own, and lets a rollout stop there.
            gold: What the data set's answer is: the `label` of a choice, its `index` counted from 0, its `text`, or
                whichever of these fits (`auto`).
        """
        self._which = which
        self._gold: GoldKind = gold
        self._words = lru_cache(maxsize=4096)(ChoiceWords)

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """Which answer counts, and what the gold answers are."""
        return {"which": self._which, "gold": self._gold}

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off.

        Raises:
            OracleError: The problem offers no choices, or its answer is none of them.
        """
        choices = choices_of(problem)
        gold = gold_choice(problem, choices, self._gold).label
        made = read_choice(completion, self._words(choices), self._which)
        extracted = ", ".join(sorted(made)) or None
        if not made:
            return Judgement(Verdict.INCORRECT, None, "the completion makes no choice")
        if len(made) > 1:
            return Judgement(
                Verdict.INCORRECT, extracted, f"the completion does not decide between {extracted}"
            )
        if made == {gold}:
            return Judgement(Verdict.CORRECT, extracted, "it is the right choice")
        return Judgement(Verdict.INCORRECT, extracted, f"the right choice is {gold}")

    def misfit(self, problem: Problem) -> str | None:
        """Why a problem can't be judged: it offers no choices, or its answer is none of them."""
        try:
            gold_choice(problem, choices_of(problem), self._gold)
        except OracleError as error:
            return str(error)
        return None

    def watcher(self, problem: Problem) -> AnswerWatcher | None:
        """Closed by the first line with a marked answer, where the first one counts."""
        if self._which == "last":
            return None
        return LineWatcher(ChoiceReader(self._words(choices_of(problem)), self._which).read)
