"""Sets of integers as intervals do what sets of integers do."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from steering_spec.intervals import EVERYTHING, Intervals, Span

BOUND = 12
NUMBERS = range(-BOUND - 2, BOUND + 3)
"""One number beyond every finite end stands for all numbers there."""

ends = st.integers(-BOUND, BOUND)
spans = st.lists(st.tuples(ends | st.just(-inf), ends | st.just(inf)), max_size=6)


def numbers(intervals: Intervals) -> set[int]:
    return {n for n in NUMBERS if any(start <= n < end for start, end in intervals.spans)}


def named(of: list[Span]) -> set[int]:
    return {n for n in NUMBERS if any(start <= n < end for start, end in of)}


@given(spans)
def test_intervals_hold_what_their_spans_hold_in_one_way_only(of: list[Span]) -> None:
    intervals = Intervals.of(of)
    assert numbers(intervals) == named(of)
    assert all(start < end for start, end in intervals.spans)
    assert all(before[1] < after[0] for before, after in pairwise(intervals.spans))
    assert Intervals.of(reversed(of)) == intervals
    assert bool(intervals) == bool(named(of))


@given(spans)
def test_a_number_is_in_intervals_that_hold_it(of: list[Span]) -> None:
    intervals = Intervals.of(of)
    assert {n for n in NUMBERS if n in intervals} == named(of)


@given(spans, spans)
def test_union_and_difference_are_those_of_sets(one: list[Span], other: list[Span]) -> None:
    left, right = Intervals.of(one), Intervals.of(other)
    assert numbers(left | right) == named(one) | named(other)
    assert numbers(left - right) == named(one) - named(other)
    assert Intervals.of((left - right).spans) == left - right


@given(spans, spans)
def test_covering_and_meeting_are_those_of_sets(one: list[Span], other: list[Span]) -> None:
    left, right = Intervals.of(one), Intervals.of(other)
    assert left.covers(right) == (named(other) <= named(one))
    assert left.meets(right) == (not named(one).isdisjoint(named(other)))


@given(spans, ends | st.just(-inf), ends | st.just(inf))
def test_a_part_is_what_lies_between_its_ends(of: list[Span], start: float, end: float) -> None:
    part = Intervals.of(of).within(start, end)
    assert numbers(part) == {n for n in named(of) if start <= n < end}
    assert Intervals.of(part.spans) == part


def test_everything_covers_everything_and_nothing_is_left_without_it() -> None:
    assert EVERYTHING.covers(EVERYTHING)
    assert Intervals() == EVERYTHING - EVERYTHING
    assert Intervals().covers(Intervals())
    assert not Intervals().meets(EVERYTHING)
