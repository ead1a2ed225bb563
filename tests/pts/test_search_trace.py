"""A completion as the search sees it: the screen, the steps, and where rollouts leave."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.ledger.records import Arm, RolloutKey
from steering_pts.search import Trace, candidates
from tests.support.simulation import Simulation, simulations

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(tuple)
taus = st.floats(0.01, 0.9)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Traces by token and by longer units."""
    pi = draw(probabilities)
    cuts = draw(st.none() | st.sets(st.integers(1, max(len(pi) - 1, 1))))
    if cuts is None or len(pi) == 1:
        return Trace("c", pi, succeeded=True)
    bounds = [0, *sorted(cuts), len(pi)]
    return Trace("c", pi, succeeded=True, spans=tuple(itertools.pairwise(bounds)))


def key(position: int, arm: Arm) -> RolloutKey:
    return RolloutKey("c", position, arm, "explore", 0)


# --- the screen -------------------------------------------------------------------------------------------------------


def test_the_screen_keeps_what_could_be_pivotal_at_all() -> None:
    assert candidates((1.0, 0.81, 0.79, 0.5, 0.0), tau=0.2) == (2, 3, 4)


def test_a_token_at_the_bound_of_the_screen_stays() -> None:
    assert candidates((0.5,), tau=0.5) == (0,)


@given(simulations(), taus)
def test_the_screen_never_loses_a_pivotal_token(simulated: Simulation, tau: float) -> None:
    pivotal = {k for k, effect in enumerate(simulated.effects()) if abs(effect) > tau + 1e-9}

    assert pivotal <= set(candidates(simulated.pi, tau))
    assert pivotal <= {step.start for step in simulated.trace().steps(tau) if step.is_candidate}


# --- steps ------------------------------------------------------------------------------------------------------------


@given(traces(), taus)
def test_steps_are_the_completion_without_gaps(trace: Trace, tau: float) -> None:
    steps = trace.steps(tau)

    assert (steps[0].start, steps[-1].end) == (0, len(trace.probabilities))
    assert all(before.end == after.start for before, after in itertools.pairwise(steps))


@given(traces(), taus)
def test_a_candidate_is_one_unit_and_what_lies_between_two_candidates_is_one_step(
    trace: Trace, tau: float
) -> None:
    steps = trace.steps(tau)

    for step in steps:
        if step.is_candidate:
            assert trace.end_of[step.start] == step.end
            assert step.probability <= 1 - tau
    assert all(before.is_candidate or after.is_candidate for before, after in itertools.pairwise(steps))


@given(traces(), taus)
def test_no_unit_of_a_merged_step_could_be_pivotal(trace: Trace, tau: float) -> None:
    merged = [step for step in trace.steps(tau) if not step.is_candidate]

    for start, end in trace.end_of.items():
        if any(step.start <= start < step.end for step in merged):
            assert trace.follow(start, end) > 1 - tau


@given(traces(), taus)
def test_a_step_is_as_likely_as_all_its_tokens(trace: Trace, tau: float) -> None:
    for step in trace.steps(tau):
        product = math.prod(trace.probabilities[step.start : step.end])
        assert step.probability == pytest.approx(product, rel=1e-9, abs=1e-11)


@given(simulations(), taus)
def test_going_back_over_a_step_mixes_the_value_after_it_with_its_alternatives(
    simulated: Simulation, tau: float
) -> None:
    # V_{k-1} = pi_k V_k + (1 - pi_k) A_k for a step too, with A weighted by where the step is left.
    values = simulated.values()
    for step in simulated.trace().steps(tau):
        left = sum(
            math.prod(simulated.pi[step.start : k]) * (1 - simulated.pi[k]) * simulated.alternative[k]
            for k in range(step.start, step.end)
        )
        assert values[step.start] == pytest.approx(step.probability * values[step.end] + left, abs=1e-9)


# --- following and leaving --------------------------------------------------------------------------------------------


@given(traces(), st.data())
def test_a_rollout_either_follows_or_leaves(trace: Trace, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(trace.probabilities)))
    end = data.draw(st.integers(start, len(trace.probabilities)))

    assert trace.follow(start, end) + trace.leave(start, end) == pytest.approx(1.0, abs=1e-12)


def test_a_tiny_chance_of_leaving_is_exact() -> None:
    assert Trace("c", (1 - 2**-40,) * 3, succeeded=True).leave(0) == pytest.approx(3 * 2**-40, rel=1e-9)


def shares(trace: Trace, asked: RolloutKey) -> dict[int, float]:
    """How much of the uniform's range leads to each place: each boundary is found by halving."""
    found: dict[int, float] = {}
    at = 0.0
    while at < 1:
        place = trace.leaves_at(asked, at)
        inside, outside = at, 1.0
        for _ in range(60):
            middle = (inside + outside) / 2
            if middle < 1 and trace.leaves_at(asked, middle) == place:
                inside = middle
            else:
                outside = middle
        found[place] = outside - at
        at = outside
    return found


@given(traces(), st.data())
def test_the_place_has_exactly_the_distribution_of_a_rollout_that_leaves(
    trace: Trace, data: st.DataObject
) -> None:
    position = data.draw(st.sampled_from(sorted(trace.end_of)))
    arm: Arm = data.draw(st.sampled_from(("alternative", "on_path")))
    unit_end = trace.end_of[position]
    start, end = (position, unit_end) if arm == "alternative" else (unit_end, len(trace.probabilities))
    if trace.leave(start, end) < 1e-6:  # such a place is never asked for
        return

    found = shares(trace, key(position, arm))

    assert set(found) <= set(range(start, end))
    for place in range(start, end):
        follows = math.prod(trace.probabilities[start:place])
        expected = follows * (1 - trace.probabilities[place]) / trace.leave(start, end)
        assert found.get(place, 0.0) == pytest.approx(expected, abs=1e-9)


def test_an_alternative_of_a_token_leaves_there() -> None:
    trace = Trace("c", (0.5, 0.3, 0.9), succeeded=True)

    assert {trace.leaves_at(key(1, "alternative"), u / 100) for u in range(100)} == {1}


def test_a_rollout_never_leaves_at_a_token_that_is_certain() -> None:
    trace = Trace("c", (0.5, 1.0, 0.6, 1.0, 0.7, 1.0), succeeded=True)
    draws = [0.0, *(u / 1000 for u in range(1000)), 1 - 2**-53]

    assert {trace.leaves_at(key(0, "on_path"), u) for u in draws} == {2, 4}


# --- sentences --------------------------------------------------------------------------------------------------------

SENTENCES = Trace("c", (0.9, 0.9, 0.9, 0.99, 0.99, 0.5), succeeded=True, spans=((0, 3), (3, 5), (5, 6)))


def test_a_sentence_of_likely_tokens_can_be_a_candidate() -> None:
    # 0.9^3 = 0.729, though none of its tokens could be pivotal with tau = 0.2.
    assert [(step.start, step.end, step.is_candidate) for step in SENTENCES.steps(0.2)] == [
        (0, 3, True),
        (3, 5, False),
        (5, 6, True),
    ]


def test_a_rollout_leaves_inside_its_sentence_or_after_it() -> None:
    uniforms = [u / 1000 for u in range(1000)]

    assert {SENTENCES.leaves_at(key(0, "alternative"), u) for u in uniforms} == {0, 1, 2}
    assert {SENTENCES.leaves_at(key(0, "on_path"), u) for u in uniforms} == {3, 4, 5}
