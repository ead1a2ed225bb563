"""Of which completions a rollout is an exact draw."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.ledger.records import CompletionRecord
from steering_pts.oracles.base import Verdict
from steering_pts.outcomes import also_leaves, known_outcomes
from steering_pts.pivots import repeated_lengths
from steering_pts.search import Outcome

Ids = tuple[int, ...]
LENGTH, TOKENS = 3, 3
PATHS = tuple(itertools.product(range(TOKENS), repeat=LENGTH))
tokens = st.integers(0, TOKENS - 1)
paths = st.tuples(*[tokens] * LENGTH)


@pytest.mark.parametrize(
    ("ids", "place", "left_at"),
    [
        ((9, 9, 9, 9), 0, None),  # the sibling's other token was forbidden to the own one only
        ((1, 9, 9, 9), 1, 1),  # both have the same token where it was left
        ((1, 2, 5, 9), 2, 3),  # it goes on as the sibling for a while
        ((1, 2, 9, 9), 2, None),  # it left the own token, not the sibling's, where they differ
        ((1, 2, 5, 6), 2, None),  # it is the sibling
        ((1, 2, 3, 9), 3, None),  # it left after the two had parted
    ],
)
def test_a_rollout_counts_for_a_sibling_where_it_was_free_to_take_any_other_token(
    ids: Ids, place: int, left_at: int | None
) -> None:
    own, sibling = (1, 2, 3, 4), (1, 2, 5, 6)
    if place == 0:  # siblings that differ from the first token on
        own = (7, 2, 3, 4)

    assert also_leaves(ids, place, own, sibling) == left_at


@given(
    st.lists(st.integers(1, 9), min_size=TOKENS**LENGTH, max_size=TOKENS**LENGTH),
    st.lists(st.booleans(), min_size=TOKENS**LENGTH, max_size=TOKENS**LENGTH),
    paths,
    paths,
    st.integers(0, LENGTH - 1),
)
def test_what_counts_for_a_sibling_succeeds_exactly_as_often_as_the_siblings_alternatives(
    weights: list[int], verdicts: list[bool], own: Ids, sibling: Ids, place: int
) -> None:
    """A model of three steps with three tokens each, by exact enumeration."""
    weight = dict(zip(PATHS, weights, strict=True))
    success = dict(zip(PATHS, verdicts, strict=True))

    def leaves(completion: Ids, at: int) -> list[Ids]:
        """All that may come of a rollout that leaves a completion there, in proportion to its weight."""
        return [p for p in PATHS if p[:at] == completion[:at] and p[at] != completion[at]]

    def rate(drawn: list[Ids]) -> Fraction:
        return Fraction(sum(weight[p] * success[p] for p in drawn), sum(weight[p] for p in drawn))

    shared: dict[int, list[Ids]] = {}
    if own != sibling:
        for path in leaves(own, place):
            left_at = also_leaves(path, place, own, sibling)
            if left_at is not None:
                shared.setdefault(left_at, []).append(path)

    for left_at, drawn in shared.items():
        assert rate(drawn) == rate(leaves(sibling, left_at))


def completion(index: int, ids: Ids, verdict: Verdict = Verdict.CORRECT) -> CompletionRecord:
    return CompletionRecord(f"c{index}", "p", index, index, (1,), ids, verdict, None, "stop")


def test_how_much_of_a_completion_an_earlier_one_of_its_problem_has_as_well() -> None:
    ids = [(1, 2, 3), (1, 2, 4), (1, 2, 3), (1, 2, 4, 5), (9,)]
    own = [completion(index, path) for index, path in enumerate(ids)]
    other = replace(completion(9, (1, 2, 3)), problem_id="another")

    assert list(repeated_lengths([*own, other]).values()) == [0, 2, 3, 3, 0, 0]
    assert repeated_lengths([]) == {}


def test_the_other_completions_of_a_problem_are_draws_where_they_leave() -> None:
    own = completion(0, (1, 2, 3))
    others = [
        own,
        completion(1, (5, 2, 3), Verdict.INCORRECT),
        completion(2, (1, 2, 4), Verdict.CENSORED),
        completion(3, (1, 2, 3)),  # the same: it leaves nowhere
        completion(4, (1, 6)),
    ]

    assert known_outcomes(own, others) == (
        Outcome(Verdict.INCORRECT, 0),
        Outcome(Verdict.CENSORED, 2),
        Outcome(Verdict.CORRECT, 1),
    )
