"""Which rows a clause names, as intervals; with or without the prompt's length.

Rows are numbered by a `Frame`. Where the prompt's length is known, one frame numbers all rows, and what a clause names
is exact. Where it isn't, rows are counted either from the prompt's end or from its beginning, and a bound that counts
from the other side may lie anywhere: then `at_most` has every row that the clause may name, and `at_least` those that
it names whatever the length. Both hold for the lengths that the clause is sound with; others are refused anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

from steering_spec.intervals import EVERYTHING, Intervals, Span
from steering_spec.steering import Clause, Phase, Positions, Window


@dataclass(frozen=True, slots=True)
class Frame:
    """A numbering of rows.

    Attributes:
        first: Number of the prompt's first row; None when it isn't known.
        end: One past the number of the prompt's last row, which is step 0; None when it isn't known.
    """

    first: int | None
    end: int | None

    def number(self, position: int) -> int | None:
        """The number of a prompt position, negative ones counting from the end; None when it isn't known."""
        origin = self.end if position < 0 else self.first
        return None if origin is None else origin + position

    @property
    def prompt(self) -> Span:
        """The rows of the prompt; a side whose number isn't known is infinite."""
        return (-inf if self.first is None else self.first, inf if self.end is None else self.end)


FROM_THE_END = Frame(None, 1)
"""The last prompt row is row 0, so step j is row j; rows of the prompt go down from there."""
FROM_THE_BEGINNING = Frame(0, None)
"""Prompt position i is row i; steps have no numbers."""


def frame_of(prompt_length: int) -> Frame:
    """Numbers all rows of a prompt whose length is known, so that the last prompt row is row 0."""
    return Frame(1 - prompt_length, 1)


def at_most(clause: Clause, frame: Frame) -> Intervals:
    """The rows that a clause may name; of a token set, those that may hold one of its tokens."""
    if clause.phase is Phase.GENERATION:
        return EVERYTHING if frame.end is None else _steps(clause, frame.end - 1)
    return Intervals.of(_prompt_spans(clause, frame, widest=True))


def at_least(clause: Clause, frame: Frame) -> Intervals:
    """The rows that a clause names for certain; for a clause without a token set."""
    if clause.phase is Phase.GENERATION:
        return Intervals() if frame.end is None else _steps(clause, frame.end - 1)
    return Intervals.of(_prompt_spans(clause, frame, widest=False))


def union(rows: Iterable[Intervals]) -> Intervals:
    """The rows of several clauses."""
    return Intervals.of(span for one in rows for span in one.spans)


def _steps(clause: Clause, step_0: int) -> Intervals:
    predicate = clause.predicate
    if isinstance(predicate, Positions):
        return Intervals.of((step_0 + step, step_0 + step + 1) for step in predicate.positions)
    if isinstance(predicate, Window):
        end = inf if predicate.end is None else step_0 + predicate.end
        return Intervals.of([(step_0 + predicate.start, end)])
    return Intervals.of([(step_0, inf)])


def _prompt_spans(clause: Clause, frame: Frame, *, widest: bool) -> Iterator[Span]:
    first, end = frame.prompt
    predicate = clause.predicate
    if isinstance(predicate, Positions):
        for position in predicate.positions:
            number = frame.number(position)
            if number is not None:
                yield number, number + 1
            elif widest:
                yield first, end
    elif isinstance(predicate, Window):
        # Every sound window of the prompt begins at its last row or before it.
        start_number = first if predicate.start == 0 else frame.number(predicate.start)
        end_number = end if predicate.end is None else frame.number(predicate.end)
        yield (
            (first if widest else end - 1) if start_number is None else start_number,
            (end if widest else first) if end_number is None else end_number,
        )
    else:
        yield first, end
