"""The oracle for answers that a pattern finds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal

import regex
from pydantic import AfterValidator

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.base import AnswerWatcher, Judgement, Oracle, Verdict
from steering_pts.oracles.exact import plain_words
from steering_pts.oracles.options import Seconds
from steering_pts.oracles.watching import LineWatcher
from steering_pts.settings import JsonValue

_GROUP: Final = "answer"


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise OracleError(f"the pattern {pattern!r:.80} can't be used: {error}") from error


def _sound(pattern: str) -> str:
    try:
        _compiled(pattern)
    except OracleError as error:
        raise ValueError(str(error.__cause__)) from error
    return pattern


RegexPattern = Annotated[str, AfterValidator(_sound)]


class RegexOracle(Oracle):
    r"""Right is a completion in which the pattern finds the gold answer.

    With groups in the pattern, what the group `answer` (or else the first group that took part) holds must read like
    the gold answer, as for `exact`: case, white space, and emphasis, quotes or a full stop around it do not count. A
    match in which no group took part does not count. Without groups, a completion is right when the pattern matches at
    all. No match is incorrect; taking longer than the limit is censored: a pattern may backtrack for longer than
    anyone waits.

    Patterns are those of the package `regex`, a superset of `re`; `(?i)`, `(?m)` and `(?s)` at the beginning set flags.
    """

    name = "regex"

    def __init__(
        self,
        pattern: RegexPattern,
        gold: RegexPattern | None = None,
        which: Literal["last", "first"] = "last",
        scope: Literal["text", "line"] = "text",
        seconds: Seconds = 1.0,
    ) -> None:
        """Compiles the patterns.

        Args:
            pattern: Finds the answer in a completion.
            gold: Finds the gold answer in the data set's answer field, by its last match, in the same way; all of the
                field if not given.
            which: The match that counts where there are several. A worked solution may match on its way, and correct
                itself; hence `last`.
            scope: What the pattern sees: the whole completion, or one line at a time.
            seconds: Most time that one completion may take.

        Raises:
            OracleError: A pattern is malformed.
        """
        self._pattern = _compiled(pattern)
        self._gold = None if gold is None else _compiled(gold)
        self._which = which
        self._scope = scope
        self._seconds = seconds

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """Both patterns, which match counts, what the pattern sees, and the time limit."""
        return {
            "pattern": self._pattern.pattern,
            "gold": None if self._gold is None else self._gold.pattern,
            "which": self._which,
            "scope": self._scope,
            "seconds": self._seconds,
        }

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off.

        Raises:
            OracleError: The gold pattern finds nothing in the problem's answer.
        """
        try:
            found = self._find(completion)
            gold = self._gold_of(problem)
        except TimeoutError:
            return Judgement.failure(f"the pattern took longer than {self._seconds:g} s")
        if gold is None:
            raise OracleError(f"the gold pattern finds nothing in {problem.answer!r:.80}")
        if found is None:
            return Judgement(Verdict.INCORRECT, None, "the pattern does not match")
        if not self._pattern.groups:
            return Judgement(Verdict.CORRECT, found, "the pattern matches")
        if plain_words(found) == plain_words(gold):
            return Judgement(Verdict.CORRECT, found, "it equals the gold answer")
        return Judgement(Verdict.INCORRECT, found, f"it is not {gold.strip()!r}")

    def misfit(self, problem: Problem) -> str | None:
        """Why a problem can't be judged: the gold pattern finds no answer in its answer field."""
        try:
            found = self._gold_of(problem)
        except TimeoutError:
            return f"the gold pattern took longer than {self._seconds:g} s in its answer"
        return (
            None
            if found is not None
            else f"the gold pattern finds nothing in its answer {problem.answer!r:.80}"
        )

    def watcher(self, problem: Problem) -> AnswerWatcher | None:
        """Closed by the first line that matches, where the first one counts and the pattern sees single lines.

        Where it sees the whole completion, what follows can change any match: patterns look ahead and are greedy.
        """
        del problem
        if self._scope == "text" or (self._which == "last" and self._pattern.groups):
            return None
        slow = False

        def decides(line: str) -> bool:
            nonlocal slow
            try:
                return not slow and self._first([line]) is not None
            except TimeoutError:
                slow = True  # the verdict is likely to be censored, whatever follows; only its judge can tell
                return False

        return LineWatcher(decides)

    def _find(self, completion: str) -> str | None:
        parts = [completion] if self._scope == "text" else completion.split("\n")
        if self._which == "first":
            return self._first(parts)
        return self._last(self._pattern, reversed(parts))

    def _gold_of(self, problem: Problem) -> str | None:
        return problem.answer if self._gold is None else self._last(self._gold, [problem.answer])

    def _first(self, parts: Iterable[str]) -> str | None:
        """The first answer of the first part that has one."""
        end = time.monotonic() + self._seconds
        return next((answer for part in parts for answer in _answers(self._pattern, part, end)), None)

    def _last(self, pattern: regex.Pattern[str], parts: Iterable[str]) -> str | None:
        """The last answer of the first part that has one."""
        end = time.monotonic() + self._seconds
        found = (deque(_answers(pattern, part, end), maxlen=1) for part in parts)
        return next((answers.pop() for answers in found if answers), None)


def _answers(pattern: regex.Pattern[str], text: str, end: float) -> Iterator[str]:
    """What each match says; TimeoutError at `end` on the monotonic clock."""
    matches = pattern.finditer(text, timeout=max(end - time.monotonic(), 1e-3))
    return (answer for match in matches if (answer := _answer(match)) is not None)


def _answer(match: regex.Match[str]) -> str | None:
    """What the match says: its group `answer`, or its first group that took part, or, without groups, all of it."""
    if not match.re.groups:
        return match.group()
    if _GROUP in match.re.groupindex:
        return match[_GROUP]
    return next((group for group in match.groups() if group is not None), None)
