"""The methods of the discovery benchmark, and how they are measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from steering_pts.ledger.records import RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.settings import SearchSettings
from tests.bench.discovery.baselines import bisect, scan
from tests.bench.discovery.bench import run_row
from tests.bench.discovery.findings import Finding, Searched
from tests.bench.discovery.measure import measure
from tests.bench.discovery.methods import METHODS
from tests.bench.discovery.simulation import Simulation, search_planted
from tests.bench.discovery.traces import SCENARIOS, PlantedTrace, draw_traces

SETTINGS = SearchSettings()


def trace_of(values: Sequence[float], probability: float = 0.5) -> PlantedTrace:
    """A trace with these values whose tokens are all equally likely."""
    curve = np.array(values)
    alternatives = (curve[:-1] - probability * curve[1:]) / (1 - probability)
    return PlantedTrace("made", np.full(len(curve) - 1, probability), alternatives, curve)


def exactly(trace: PlantedTrace, split: str = "length") -> list[int]:
    found = bisect(trace, None, split, SETTINGS, np.random.default_rng(0))
    return [finding.position for finding in found.reported]


@pytest.mark.parametrize("split", ["length", "surprisal"])
def test_exact_bisection_finds_every_step_that_does_not_cancel(split: str) -> None:
    assert exactly(trace_of([0.5, 0.5, 0.7, 0.7, 0.7, 1.0]), split) == [1, 4]


def test_exact_bisection_is_blind_to_steps_that_cancel() -> None:
    assert exactly(trace_of([0.5, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0])) == [7]


def test_exact_bisection_has_no_cost() -> None:
    found = bisect(trace_of([0.5, 1.0]), None, "length", SETTINGS, np.random.default_rng(0))
    assert (found.rollouts, found.tokens) == (None, None)


def test_bisection_pays_for_each_prefix_once() -> None:
    # Values of 0 and 1 leave nothing to chance: it looks at the prefixes 0, 2 and 3, and knows the end.
    found = bisect(trace_of([0, 0, 0, 0, 1]), 10, "length", SETTINGS, np.random.default_rng(0))
    assert [finding.position for finding in found.reported] == [3]
    assert found.rollouts == 30
    assert found.tokens == 10 * (4 + 2 + 1)


def test_surprisal_splits_where_the_completion_surprises() -> None:
    trace = trace_of([0, 0, 0, 0, 0, 0, 0, 0, 1])
    probabilities = np.array([1, 1, 1, 1, 1, 1, 1, 0.01])
    lopsided = PlantedTrace("made", probabilities, trace.alternatives, trace.values)
    cost = [
        bisect(lopsided, 10, split, SETTINGS, np.random.default_rng(0)).rollouts
        for split in ("length", "surprisal")
    ]
    assert cost == [40, 20]


def test_a_scan_pays_for_every_prefix() -> None:
    found = scan(trace_of([0, 0, 0, 1]), 64, SETTINGS, np.random.default_rng(0))
    assert [finding.position for finding in found.reported] == [2]
    assert (found.rollouts, found.tokens) == (3 * 64, 64 * (3 + 2 + 1))


def test_simulated_rollouts_succeed_as_often_as_the_values_say() -> None:
    (trace,) = draw_traces(SCENARIOS[0], 1, 7)
    simulation = Simulation([trace], 0)
    position = int(np.abs(trace.effects).argmax())  # a pivot, where the two sides differ
    verdicts = {
        arm: [
            simulation.answer(RolloutKey(trace.id, position, arm, "explore", index)).verdict
            for index in range(4000)
        ]
        for arm in ("alternative", "on_path")
    }
    rate = {arm: own.count(Verdict.CORRECT) / len(own) for arm, own in verdicts.items()}
    follows = float(np.prod(trace.probabilities[position + 1 :]))
    later = (trace.values[position + 1] - follows * trace.values[-1]) / (1 - follows)
    assert rate["alternative"] == pytest.approx(trace.alternatives[position], abs=4 * 0.008)
    assert rate["on_path"] == pytest.approx(later, abs=4 * 0.008)


def test_a_simulated_rollout_costs_what_it_generates() -> None:
    (trace,) = draw_traces(SCENARIOS[0], 1, 7)
    simulation = Simulation([trace], 0)
    outcome = simulation.answer(RolloutKey(trace.id, 20, "on_path", "explore", 0))
    assert outcome.divergence > 20
    assert simulation.costs[trace.id].rollouts == 1
    assert simulation.costs[trace.id].tokens == 200 - outcome.divergence


def test_simulated_answers_do_not_depend_on_their_order() -> None:
    traces = draw_traces(SCENARIOS[0], 2, 7)
    keys = [RolloutKey(t.id, 10, "on_path", "explore", index) for t in traces for index in range(20)]
    forward, backward = Simulation(traces, 0), Simulation(traces, 0)
    outcomes = {key: forward.answer(key) for key in keys}
    assert outcomes == {key: backward.answer(key) for key in reversed(keys)}


def test_the_search_finds_planted_pivots_and_nothing_else() -> None:
    traces = draw_traces(SCENARIOS[0], 6, 1)
    row = measure(search_planted(traces, SETTINGS, 0), SETTINGS.tau, SETTINGS.delta0, 0.0)
    assert row["recall"] >= 14 / 18
    assert row["fdr"] == 0
    assert row["sign_errors"] == 0
    assert row["rollouts"] <= SETTINGS.budget


def test_measures_of_reports_are_counted_by_hand() -> None:
    searched = [
        Searched(
            effects={3: 0.3, 5: -0.25, 8: 0.15, 9: 0.01},
            reported=(
                Finding(3, 0.4, (0.2, 0.6)),
                Finding(8, 0.2, (0.16, 0.3)),
                Finding(9, -0.11, (-0.2, 0.1)),
            ),
            rollouts=100,
            tokens=2_000,
            confirmed=(Finding(3, 0.4, (0.2, 0.6)), Finding(5, -0.1, (-0.3, 0.1))),
        ),
        Searched(effects={1: 0.5}, reported=(), rollouts=50, tokens=1_000),
    ]
    row = measure(searched, 0.2, 0.1, 1.5)
    assert row["recall"] == 1 / 3
    assert row["nominee_recall"] == 2 / 3
    assert row["fdr"] == 2 / 3
    assert row["fdr_below_delta0"] == 1 / 3
    assert row["false_per_trace"] == 1.0
    assert row["sign_errors"] == 1
    assert row["bias"] == pytest.approx((0.1 + 0.05 - 0.12) / 3)
    assert row["coverage95_reported"] == 2 / 3
    assert row["coverage95"] == 1.0
    assert (row["rollouts"], row["kilotokens"], row["n_traces"], row["seconds"]) == (75, 1.5, 2, 1.5)


def test_what_can_not_be_measured_is_none() -> None:
    row = measure([Searched({}, (), None, None)], 0.2, 0.1, 0.0)
    assert [name for name, value in row.items() if value is None] == [
        *("recall", "recall_95", "nominee_recall", "fdr_95", "bias", "coverage95", "coverage95_reported"),
        *("rollouts", "kilotokens"),
    ]
    assert row["fdr"] == 0


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("pivotal")])
def test_every_method_in_use_is_measured_on_as_many_traces_as_asked_for(method: str) -> None:
    assert run_row("planted_15", method, 5)["n_traces"] == 5
