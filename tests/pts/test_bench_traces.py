"""Planted traces of the discovery benchmark: their values are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.search import candidates
from tests.bench.discovery.traces import SCENARIOS, UNDECIDED, Scenario, draw_traces, scenario_like

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@settings(max_examples=20)
@given(scenario=st.sampled_from(SCENARIOS), seed=st.integers(0, 2**32))
def test_values_satisfy_the_identity_exactly(scenario: Scenario, seed: int) -> None:
    (trace,) = draw_traces(scenario, 1, seed)
    pi, a, v = trace.probabilities, trace.alternatives, trace.values
    assert (v[:-1] == pi * v[1:] + (1 - pi) * a).all()
    assert ((pi > 0) & (pi < 1) | (pi == 1)).all()
    assert ((a >= 0) & (a <= 1)).all()
    assert v[-1] in (0, 1)
    assert UNDECIDED[0] <= v[0] <= UNDECIDED[1]


@settings(max_examples=20)
@given(scenario=st.sampled_from(SCENARIOS), seed=st.integers(0, 2**32))
def test_every_pivot_passes_the_certified_screen(scenario: Scenario, seed: int) -> None:
    (trace,) = draw_traces(scenario, 1, seed)
    pivots = set(np.flatnonzero(np.abs(trace.effects) >= 0.2).tolist())
    assert pivots <= set(candidates(trace.to_search().probabilities, 0.2))


@pytest.mark.parametrize("name", ["planted_15", "planted_35"])
def test_planted_traces_have_three_pivots_and_nothing_between(name: str) -> None:
    for trace in draw_traces(BY_NAME[name], 30, 1):
        sizes = np.sort(np.abs(trace.effects))
        assert (sizes[-3:] >= 0.25 - 1e-9).all()
        assert sizes[-1] <= 0.5 + 1e-9
        assert sizes[-4] <= 0.06 + 1e-9


def test_opposing_pivots_cancel_each_other_in_the_first_half() -> None:
    for trace in draw_traces(BY_NAME["opposing"], 30, 1):
        first, second, last = np.flatnonzero(np.abs(trace.effects) >= 0.2)
        assert first < second < 100 <= last
        assert trace.effects[first] == pytest.approx(-trace.effects[second])


def test_null_traces_have_no_effect_above_six_hundredths() -> None:
    for trace in draw_traces(BY_NAME["null"], 30, 1):
        assert np.abs(trace.effects).max() <= 0.06 + 1e-9


def test_the_fork_share_is_the_scenarios() -> None:
    for name, share in (("planted_15", 0.15), ("planted_35", 0.35)):
        forks = [(trace.probabilities < 0.925).mean() for trace in draw_traces(BY_NAME[name], 100, 1)]
        assert np.mean(forks) == pytest.approx(share, abs=0.02)


def test_the_same_seed_draws_the_same_traces_however_many_are_wanted() -> None:
    few, many = (draw_traces(SCENARIOS[0], count, 3) for count in (5, 80))
    for one, other in zip(few, many, strict=False):
        assert one.id == other.id
        assert (one.values == other.values).all()
    assert (draw_traces(SCENARIOS[0], 1, 4)[0].values != few[0].values).any()


def test_traces_like_a_completion_have_its_candidates_and_its_number_of_pivots() -> None:
    for trace in draw_traces(scenario_like([2, 6, 17], 30, 2), 20, 1):
        assert candidates(trace.to_search().probabilities, 0.2) == (2, 6, 17)
        assert (np.abs(trace.effects) >= 0.2).sum() == 2
        assert len(trace.probabilities) == 30


@pytest.mark.parametrize(("places", "pivots"), [([2], 2), ([2], 0), ([30], 1), ([-1], 1)])
def test_traces_that_can_not_be_are_refused(places: list[int], pivots: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        scenario_like(places, 30, pivots)
