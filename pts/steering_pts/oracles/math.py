"""The oracle for answers that are numbers or mathematics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Final

from steering_pts.data import Problem
from steering_pts.oracles.base import AnswerWatcher, Judgement, Oracle, Verdict
from steering_pts.oracles.dressing import (
    based_number,
    clock_time,
    exclaimed_number,
    plain_number,
    scaled_number,
)
from steering_pts.oracles.equality import EqualityError, EqualityWorker
from steering_pts.oracles.extraction import extract_answer, gold_answer, is_answer_line
from steering_pts.oracles.options import Seconds
from steering_pts.oracles.watching import LineWatcher
from steering_pts.settings import JsonValue

CACHED_PAIRS: Final = 65_536
MAX_CHARACTERS: Final = 500  # of an answer; parsers of formulas slow down, or give up, beyond

_WORDS: Final = re.compile(r"[A-Za-z]{2,}(?:[\s'-]+[A-Za-z]+)*")
_COMMAND: Final = re.compile(r"\\[A-Za-z]+")
_ELSEWHERE: Final = re.compile(r"[A-Za-z]{2,}")
_SYMBOLS: Final = re.compile(r"[\w\s+\-*/^=<>(){}\[\]|,.;:!%'\\°&$]+")


class MathOracle(Oracle):
    """Right is what equals the gold answer.

    Integers and decimals are equal when they are exactly equal (`18`, `18.0`, `$18.00`); all else
    is math-verify's to say, by value or by form: `1/2`, `0.5` and `50%`; `x^2 + 2x + 1` and
    `(x + 1)^2`. Decimals beside fractions and roots are equal to 6 places. Words are compared as
    words; `3 million` is 3 or 3,000,000, whichever the question asked for. A completion without
    an answer is incorrect; a comparison that fails or takes longer than its limit is censored.

    Each pair of gold answer and answer is compared once: a bounded cache holds the outcomes.
    """

    name = "math"

    def __init__(self, seconds: Seconds = 5.0) -> None:
        self._seconds = seconds
        self._worker = EqualityWorker(seconds)
        self._compare = lru_cache(maxsize=CACHED_PAIRS)(self._compare_once)
        self._gold = lru_cache(maxsize=4096)(gold_answer)

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """Most seconds that a comparison may take."""
        return {"seconds": self._seconds}

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off."""
        extracted = extract_answer(completion)
        if extracted is None:
            return Judgement(Verdict.INCORRECT, None, "the completion gives no answer")
        if len(extracted) > MAX_CHARACTERS:
            return Judgement(Verdict.INCORRECT, extracted[:MAX_CHARACTERS], "too long to be an answer")
        verdict, explanation = self._compare(self._gold(problem.answer), extracted)
        return Judgement(verdict, extracted, explanation, failed=verdict is Verdict.CENSORED)

    def watcher(self, problem: Problem) -> AnswerWatcher:
        """True once the first `####` line with an answer has ended; every other form can still be outranked."""
        del problem
        return LineWatcher(is_answer_line)

    def close(self) -> None:
        """Ends the comparing process, if one was started."""
        self._worker.close()

    def _compare_once(self, gold: str, answer: str) -> tuple[Verdict, str]:
        try:
            equal = self._are_equal(gold, answer)
        except EqualityError as error:
            return Verdict.CENSORED, f"{answer} against {gold}: {error}"
        if equal:
            return Verdict.CORRECT, f"{answer} equals {gold}"
        return Verdict.INCORRECT, f"{answer} is not {gold}"

    def _are_equal(self, gold: str, answer: str) -> bool:
        if _folded(gold) == _folded(answer):
            return True
        if (same := _same_base(gold, answer)) is not None or (same := _same_time(gold, answer)) is not None:
            return same
        if readings := scaled_number(answer) or exclaimed_number(answer):
            return any(self._are_equal(gold, reading) for reading in readings)
        gold_number, number = plain_number(gold), plain_number(answer)
        if gold_number is not None and number is not None:
            return gold_number == number
        if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
            return False
        return self._worker.equal(_written_out(gold, gold_number), _written_out(answer, number))


def is_mathematics(gold: str) -> bool:
    """Whether an undressed gold answer reads as a number or a formula, and not as words."""
    if plain_number(gold) is not None:
        return True
    return bool(
        _SYMBOLS.fullmatch(gold)
        and len(gold) <= MAX_CHARACTERS
        and not _ELSEWHERE.search(_COMMAND.sub(" ", gold))
        and re.search(r"\d|\\|[A-Za-z]\s*[-+*/^=<>(]|^[a-z]$", gold)
    )


def _folded(answer: str) -> str:
    """Without case and spaces, except between two digits, where a space makes two numbers."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", answer.casefold())


def _same_base(gold: str, answer: str) -> bool | None:
    """Whether two numbers have the same digits and no different base; None where neither is written with one."""
    (gold_digits, gold_base), (digits, base) = based_number(gold), based_number(answer)
    if gold_base is None and base is None:
        return None
    return gold_digits == digits and (gold_base is None or base is None or gold_base == base)


def _same_time(gold: str, answer: str) -> bool | None:
    """Whether two times of day are the same, as far as both say which half of it; None where neither is a time.

    `3:45` alone may be a ratio, which is math-verify's to say; it fails on `2:00`, as on every division by zero.
    """
    gold_time, time = clock_time(gold), clock_time(answer)
    if not any(known and (known[2] or known[1] == 0) for known in (gold_time, time)):
        return None
    if gold_time is None or time is None:
        return False
    return gold_time[:2] == time[:2] and (gold_time[2] == time[2] or not gold_time[2] or not time[2])


def _written_out(answer: str, number: Decimal | None) -> str:
    """A number without an exponent: to LaTeX, `3e6` is a product."""
    return answer if number is None or abs(number.adjusted()) > MAX_CHARACTERS else f"{number:f}"
