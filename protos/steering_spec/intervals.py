"""Sets of integers as intervals: how admission judges which rows a rule may choose without going through the rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from typing import TypeAlias

Span: TypeAlias = tuple[float, float]
"""A half-open interval; either end may be infinite."""

_START = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Intervals:
    """A set of integers.

    Attributes:
        spans: Its intervals, ascending; none is empty, and no two of them touch. `of` makes them so.
    """

    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Intervals:
        """The union of intervals in any order, overlapping or not; one that doesn't end after its start is empty."""
        merged: list[Span] = []
        for start, end in sorted(spans):
            if end <= start:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return cls(tuple(merged))

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self.spans, number, key=_START) - 1
        return index >= 0 and number < self.spans[index][1]

    def __or__(self, other: Intervals) -> Intervals:
        return Intervals.of((*self.spans, *other.spans))

    def __sub__(self, other: Intervals) -> Intervals:
        """What is in this set and not in the other; linear in the intervals of both."""
        left: list[Span] = []
        gaps = other.spans
        index = 0
        for start, end in self.spans:
            while index < len(gaps) and gaps[index][0] < end:
                gap_start, gap_end = gaps[index]
                if start < gap_start:
                    left.append((start, gap_start))
                start = max(start, gap_end)  # noqa: PLW2901 -- what is left of this interval
                if gap_end > end:
                    break  # the gap may reach into the next interval too
                index += 1
            if start < end:
                left.append((start, end))
        return Intervals(tuple(left))

    def within(self, start: float, end: float) -> Intervals:
        """What is in this set and in `[start, end)`; logarithmic but for what it copies."""
        low = max(bisect_right(self.spans, start, key=_START) - 1, 0)
        high = bisect_right(self.spans, end, key=_START)
        return Intervals.of((max(start, one), min(end, other)) for one, other in self.spans[low:high])

    def covers(self, other: Intervals) -> bool:
        """Whether the other set is a part of this one; logarithmic in the intervals of this one."""
        for start, end in other.spans:
            index = bisect_right(self.spans, start, key=_START) - 1
            if index < 0 or self.spans[index][1] < end:
                return False
        return True

    def meets(self, other: Intervals) -> bool:
        """Whether the two sets have an integer in common; linear in the intervals of both, at most."""
        mine, theirs = self.spans, other.spans
        own = their = 0
        while own < len(mine) and their < len(theirs):
            if mine[own][1] <= theirs[their][0]:
                own += 1
            elif theirs[their][1] <= mine[own][0]:
                their += 1
            else:
                return True
        return False


EVERYTHING = Intervals(((-inf, inf),))
