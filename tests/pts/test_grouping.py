"""Which decisions are alike, where their contexts tell where to act, and what they are matched to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_pts.vectors.contexts import f_measure, with_contexts
from steering_pts.vectors.events import EventGroup, PivotEvent, shared_suffix
from steering_pts.vectors.grouping import Floats, Grouping, group_by_clusters, group_by_tokens
from steering_pts.vectors.matching import QuietPlace, decides_nothing, matched_places
from tests.support.pivots import event, quiet

# --- by what the states are like --------------------------------------------------------------------------------------


def planted(
    sizes: Sequence[int], hidden: int = 24, noise: float = 0.2, seed: int = 0, per_problem: int = 1
) -> tuple[list[PivotEvent], Floats, Floats]:
    """Decisions of several kinds, mixed: at each of two blocks a kind has its own state and difference, with noise.

    The chosen token says which kind an event is of.
    """
    random = np.random.default_rng(seed)
    kinds = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    events = [
        event((1, 2), int(kind), 99, problem=f"p{number // per_problem}") for number, kind in enumerate(kinds)
    ]
    # At right angles: kinds whose differences point alike need no group of their own.
    centres = [3 * np.linalg.qr(random.normal(size=(hidden, len(sizes))))[0].T[kinds] for _ in range(4)]
    states = [centre + noise * random.normal(size=centre.shape) for centre in centres]
    return events, np.stack(states[:2], axis=1), np.stack(states[2:], axis=1)


def kinds_of(grouping: Grouping) -> list[Counter[int]]:
    return [Counter(one.chosen_id for one in group) for group in grouping.groups]


@pytest.mark.parametrize("hidden", [8, 200])
@pytest.mark.parametrize("sizes", [(30,), (20, 14), (20, 15, 10, 6)])
def test_planted_kinds_are_found(sizes: Sequence[int], hidden: int) -> None:
    grouping = group_by_clusters(*planted(sizes, hidden), min_events=4)

    assert kinds_of(grouping) == [Counter({kind: size}) for kind, size in enumerate(sizes)]
    assert grouping.rest == ()
    assert grouping.left_out == ()


def test_one_more_group_than_there_are_kinds_is_no_better_on_held_out_decisions() -> None:
    grouping = group_by_clusters(*planted((30, 20, 12)), min_events=4)

    one, two, three, four, *_ = grouping.alignment
    assert one < two < three
    assert four < three + 0.02


def test_noise_is_rarely_more_than_one_group() -> None:
    events, _, _ = planted((40,))
    random = np.random.default_rng(0)
    noise = [[random.normal(size=(40, 2, 24)) for _ in range(2)] for _ in range(12)]

    counts = [len(group_by_clusters(events, *one, min_events=4).groups) for one in noise]

    assert counts.count(1) >= 9, counts


def test_kinds_that_are_too_rare_are_left_out_and_counted() -> None:
    grouping = group_by_clusters(*planted((20, 16, 3), noise=0.05), min_events=4)

    assert sum(map(len, grouping.groups)) + len(grouping.rest) == 39
    assert all(len(group) >= 4 for group in grouping.groups)
    if grouping.rest:
        assert grouping.left_out == (
            f"{len(grouping.rest)} decisions of kinds that were seen fewer than 4 times",
        )


def test_fewer_decisions_than_a_group_needs_make_none() -> None:
    grouping = group_by_clusters(*planted((3,)), min_events=4)

    assert grouping.groups == ()
    assert grouping.left_out == ("3 decisions of kinds that were seen fewer than 4 times",)


@pytest.mark.parametrize("count", [1, 20])
def test_what_can_not_be_held_out_is_one_group(count: int) -> None:
    grouping = group_by_clusters(*planted((count,), per_problem=100), min_events=1)

    assert [len(group) for group in grouping.groups] == [count]


def test_decisions_without_a_difference_are_no_obstacle() -> None:
    events, prefix, difference = planted((10, 8))

    grouping = group_by_clusters(events, prefix, 0 * difference, min_events=4)

    assert sum(map(len, grouping.groups)) + len(grouping.rest) == 18


def test_groups_are_the_same_every_time() -> None:
    one, other = (group_by_clusters(*planted((20, 15, 10), noise=1.5), min_events=4) for _ in range(2))

    assert one == other


def test_more_decisions_than_are_clustered_join_what_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering_pts.vectors.grouping._MOST_CLUSTERED", 40)

    grouping = group_by_clusters(*planted((150, 90, 60)), min_events=4)

    assert kinds_of(grouping) == [Counter({0: 150}), Counter({1: 90}), Counter({2: 60})]


# --- by tokens --------------------------------------------------------------------------------------------------------


def test_decisions_between_the_same_two_tokens_are_one_group() -> None:
    events = [event((i, 7, 8), 1, 2) for i in range(4)] + [event((i, 7, 8), 3, 4) for i in range(5)]

    grouping = group_by_tokens(events, 4)

    assert [len(group) for group in grouping.groups] == [5, 4]
    assert {(e.chosen_id, e.rejected_id) for e in grouping.groups[0]} == {(3, 4)}
    assert grouping.left_out == ()


def test_rare_decisions_at_the_same_place_are_one_group() -> None:
    events = [event((9, 6, 7, 8), i, i + 1) for i in range(4)]

    assert group_by_tokens(events, 4).groups == (tuple(events),)


def test_what_is_too_rare_is_counted() -> None:
    grouping = group_by_tokens([event((i, i), i, i + 1) for i in range(3)], 4)

    assert grouping.groups == ()
    assert grouping.left_out == ("3 decisions of kinds that were seen fewer than 4 times",)


def test_a_context_of_one_token_makes_no_group() -> None:
    grouping = group_by_tokens([event((8,), i, i + 1) for i in range(4)], 4)

    assert grouping.groups == ()
    assert len(grouping.left_out) == 1


@given(
    st.lists(
        st.builds(
            event, st.lists(st.integers(5, 7), min_size=1, max_size=4), st.integers(0, 2), st.integers(3, 4)
        ),
        max_size=20,
    ),
    st.integers(1, 4),
)
def test_every_decision_is_in_one_group_or_left_out(events: list[PivotEvent], min_events: int) -> None:
    grouping = group_by_tokens(events, min_events)

    placed = [id(one) for group in (*grouping.groups, grouping.rest) for one in group]
    assert sorted(placed) == sorted(map(id, events))
    assert all(len(group) >= min_events for group in grouping.groups)


# --- contexts ---------------------------------------------------------------------------------------------------------

ids = st.lists(st.integers(0, 3), max_size=6)


@given(st.lists(ids, min_size=1, max_size=5))
def test_the_shared_suffix_is_shared_and_no_longer_one_is(contexts: list[list[int]]) -> None:
    length = shared_suffix(contexts)

    assert len({tuple(context[len(context) - length :]) for context in contexts}) == 1
    longer = {tuple(context[-length - 1 :]) for context in contexts}
    assert length == min(map(len, contexts)) or len(longer) > 1


@given(ids, st.lists(ids, min_size=1, max_size=5))
def test_a_common_end_is_always_found(end: list[int], contexts: list[list[int]]) -> None:
    assert shared_suffix([[*context, *end] for context in contexts]) >= len(end)


def test_a_context_keeps_the_last_ids_only() -> None:
    assert event(range(200)).context == tuple(range(200 - MAX_CONTEXT_TOKENS, 200))


def test_a_quiet_place_has_the_context_of_a_decision_there() -> None:
    for position in (0, 3, 90, 150):
        place = quiet(range(100, 260), position, prompt=range(5, 15))

        assert place.context == event(place.prefix_ids).context


def alike(count: int, *end: int, first: int = 100, problem: str = "a") -> list[PivotEvent]:
    """Decisions of different problems behind the same ids."""
    return [event((first + i, *end), problem=f"{problem}{i}") for i in range(count)]


def test_the_shortest_match_that_nothing_else_has_is_taken() -> None:
    group = alike(6, 9, 8, 7)
    elsewhere = [quiet((50 + i, 8, 7), 3, problem=f"q{i}") for i in range(6)]

    with_none, with_others = with_contexts([group], []), with_contexts([group], elsewhere)

    assert [one.min_match for one in with_none] == [2]
    assert [one.min_match for one in with_others] == [3]
    assert with_others[0].contexts == tuple(sorted(one.context for one in group))


def test_decisions_of_other_groups_and_of_none_are_not_to_be_matched() -> None:
    group, other, left_over = (
        alike(5, 9, 8, 7),
        alike(5, 6, 8, 7, problem="b"),
        alike(5, 5, 8, 7, problem="c"),
    )

    assert [one.min_match for one in with_contexts([group, other], [])] == [3, 3]
    assert [one.min_match for one in with_contexts([group], [], left_over)] == [3]


def test_contexts_that_mostly_recur_where_nothing_is_decided_are_none() -> None:
    group = alike(6, 8, 7)
    elsewhere = [quiet((50 + i, 8, 7), 3, problem=f"q{i}") for i in range(30)]

    (found,) = with_contexts([group], elsewhere)

    assert (found.min_match, found.contexts) == (0, ())


def test_of_very_many_quiet_places_some_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering_pts.vectors.contexts._MOST_QUIET", 30)
    group = alike(6, 8, 7)
    few = [quiet((50 + i, 3, 4), 3, problem=f"q{i}") for i in range(200)]
    many = [quiet((50 + i, 8, 7), 3, problem=f"q{i}") for i in range(200)]

    assert [one.min_match for one in with_contexts([group], few)] == [2]
    assert [one.min_match for one in with_contexts([group], many[:12] + few)] == [2]
    assert [one.min_match for one in with_contexts([group], many)] == [0]


def test_a_context_seen_in_one_problem_alone_says_nothing_of_others() -> None:
    group = [event((i, i + 1, i + 2, i + 3), problem=f"p{i}") for i in range(0, 60, 10)]

    assert [one.min_match for one in with_contexts([group], [])] == [0]


@pytest.mark.parametrize(("end", "expected"), [((7, 8, 9), 3), ((9,), 0)])
def test_a_group_of_one_problem_takes_what_its_contexts_share(end: tuple[int, ...], expected: int) -> None:
    group = [event((100 + i, *end), problem="p") for i in range(3)]

    assert [one.min_match for one in with_contexts([group], [])] == [expected]


def test_very_many_contexts_keep_fewer_of_their_ids() -> None:
    events = tuple(event((number, *range(60))) for number in range(8000))

    contexts = EventGroup(events, 5).contexts

    assert len(contexts) == 1  # what made them differ is among the ids that there is no room for
    assert contexts[0] == tuple(range(60))[-(2**18 // 8000) :]


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_measure_lies_between_and_nearer_to_recall(precision: float, recall: float) -> None:
    found = f_measure(precision, recall)

    assert min(precision, recall) - 1e-9 <= found <= max(precision, recall) + 1e-9
    assert abs(found - recall) <= abs(found - precision) + 1e-9 or found <= (precision + recall) / 2


# --- places where nothing is decided ----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0.0001, 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.floats(0.001, 0.999),
    st.floats(0, 1),
    st.floats(0.05, 0.5),
)
def test_what_is_certified_decides_nothing_whatever_follows(
    others: list[tuple[float, float]], probability: float, value: float, tau: float
) -> None:
    weights = np.array([weight for weight, _ in others])
    chances = np.array([probability, *((1 - probability) * weights / weights.sum())])
    values = np.array([value, *(v for _, v in others)])
    variance = chances @ (values - chances @ values) ** 2

    if decides_nothing(probability, tau):
        assert variance < tau**2 + 1e-12


def test_the_bound_is_reached() -> None:
    assert decides_nothing(0.9584, 0.2)
    assert not decides_nothing(0.958, 0.2)
    assert not decides_nothing(0.01, 0.2)


places = st.builds(
    quiet,
    st.just(range(100, 120)),
    st.integers(0, 19),
    problem=st.sampled_from("ab"),
    completion=st.sampled_from("xyz"),
)
decisions = st.builds(
    event,
    st.just((1,)),
    problem=st.sampled_from("ab"),
    completion=st.sampled_from("xyz"),
    position=st.integers(0, 25),
)


@given(
    st.lists(decisions, max_size=8),
    st.lists(places, max_size=20, unique_by=lambda p: (p.completion.id, p.position)),
)
def test_every_decision_gets_the_nearest_free_place_of_its_completion(
    events: list[PivotEvent], quiet_places: list[QuietPlace]
) -> None:
    matched = matched_places(events, quiet_places)

    free = {(one.completion.id, one.position) for one in quiet_places}
    assert sum(one is not None for one in matched) == min(len(events), len(free))
    for one, place in zip(events, matched, strict=True):
        if place is None:
            assert not free
            continue
        own = [position for completion, position in free if completion == one.completion_id]
        key = (place.completion.id, place.position)
        assert key in free
        if own:
            assert place.completion.id == one.completion_id
            assert abs(place.position - one.position) == min(abs(at - one.position) for at in own)
        free.remove(key)
