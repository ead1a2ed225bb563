"""The whole search against simulated completions, of which every probability is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.ledger.records import ConfirmationRecord, RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search import Outcome, Search, Trace
from steering_pts.settings import SearchSettings
from steering_pts.statistics import benjamini_hochberg
from tests.support.simulation import Simulation, finished, planted

SETTINGS = SearchSettings(budget=400)
SEVERAL = planted(60, forks=range(0, 60, 12), effects={5: 0.3, 20: -0.3, 40: 0.45})
OPPOSITE = planted(60, forks=range(0, 60, 12), effects={10: -0.35, 11: 0.35, 30: 0.4})
NOTHING = planted(40, forks=range(0, 40, 5), effects={})
RUNS = 12


def searched(simulated: Simulation, runs: int, settings: SearchSettings = SETTINGS) -> Search:
    """One run over as many draws of the same completion."""
    traces = [simulated.trace(f"c{index:03}") for index in range(runs)]
    return finished(traces, settings, simulated.roll)


def pivots(search: Search) -> list[ConfirmationRecord]:
    reject, _ = benjamini_hochberg([c.p_value for c in search.confirmations], SETTINGS.fdr)
    return [c for c, found in zip(search.confirmations, reject, strict=True) if found]


@pytest.mark.parametrize("simulated", [SEVERAL, OPPOSITE])
def test_planted_effects_are_found_with_their_sign_and_hardly_anything_else(simulated: Simulation) -> None:
    effects = simulated.effects()
    large = [k for k, effect in enumerate(effects) if abs(effect) > 0.2]
    found = pivots(searched(simulated, RUNS))

    for position in large:
        own = [c for c in found if c.position == position]
        assert len(own) >= 0.7 * RUNS, f"the effect at {position} is missed too often"
        assert all(c.delta * effects[position] > 0 for c in own)
    assert len([c for c in found if c.position not in large]) <= 0.1 * len(found)


def test_without_effects_nothing_is_found() -> None:
    assert pivots(searched(NOTHING, RUNS)) == []


def test_the_reported_effect_has_no_winners_curse() -> None:
    simulated = planted(20, forks=[3], effects={15: 0.25})

    deltas = [c.delta for c in searched(simulated, 60).confirmations if c.position == 15]

    assert len(deltas) > 25
    assert np.mean(deltas) == pytest.approx(0.25, abs=4 * np.std(deltas) / len(deltas) ** 0.5)


def test_the_interval_of_a_reported_effect_holds_it_about_as_often_as_it_says() -> None:
    simulated = planted(20, forks=[3], effects={8: 0.25, 15: 0.3})
    truth = simulated.effects()

    confirmations = searched(simulated, 50).confirmations

    assert len(confirmations) > 50
    assert np.mean([c.low <= truth[c.position] <= c.high for c in confirmations]) >= 0.88


def test_effects_at_the_bound_are_confirmed_no_more_often_than_the_level_says() -> None:
    simulated = planted(12, forks=[], effects={5: SETTINGS.delta0})
    # Nominated carelessly, so that the confirmation alone has to hold the level.
    careless = SearchSettings(budget=100, nominate=0.001, rho=0.5, learn_prior=False)

    search = searched(simulated, 100, careless)

    positive = {(n.completion_id, n.position) for n in search.nominees if n.sign > 0}
    p_values = [c.p_value for c in search.confirmations if (c.completion_id, c.position) in positive]
    assert len(p_values) > 40
    assert np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * (0.09 / len(p_values)) ** 0.5


def test_a_completion_without_candidates_asks_for_nothing() -> None:
    search = Search([Trace("c", (1.0, 0.99), succeeded=True)], SETTINGS)

    assert (search.asks(), search.done, search.nominees, search.confirmations) == ([], True, [], [])


def test_no_completions_ask_for_nothing() -> None:
    search = Search([], SETTINGS)

    assert (search.asks(), search.done) == ([], True)


def test_asking_twice_asks_for_the_same() -> None:
    search = Search([SEVERAL.trace()], SETTINGS)

    assert search.asks() == search.asks()


def test_outcomes_of_other_rollouts_are_refused() -> None:
    search = Search([SEVERAL.trace()], SETTINGS)
    asks = search.asks()

    with pytest.raises(ValueError, match="must be those of the rollouts that were asked for"):
        search.tell({key: SEVERAL.roll(key) for key in asks[1:]})


def stages(settings: SearchSettings) -> tuple[Search, dict[str, list[RolloutKey]]]:
    """A search that has ended, and what it asked for in each stage."""
    search = Search([SEVERAL.trace()], settings)
    asked: dict[str, list[RolloutKey]] = {}
    while asks := search.asks():
        asked.setdefault(search.stage, []).extend(asks)
        search.tell({key: SEVERAL.roll(key) for key in asks})
    return search, asked


def test_confirmation_makes_the_fresh_rollouts_that_its_nominees_name() -> None:
    search, asked = stages(SETTINGS)

    assert search.nominees
    assert {key.stage for key in asked["confirm"]} == {"confirm"}
    for nominee in search.nominees:
        for arm, count in (("on_path", nominee.on_path), ("alternative", nominee.alternative)):
            own = [k.index for k in asked["confirm"] if (k.position, k.arm) == (nominee.position, arm)]
            assert own == list(range(count))
    assert len(asked["confirm"]) == sum(n.on_path + n.alternative for n in search.nominees)


def test_a_confirmation_counts_its_fresh_rollouts_alone() -> None:
    search, _ = stages(SETTINGS)

    for nominee, found in zip(search.nominees, search.confirmations, strict=True):
        assert (found.n1, found.n2) == (nominee.on_path, nominee.alternative)


def test_how_many_fresh_rollouts_there_are_depends_on_exploration_alone() -> None:
    def other_answers(key: RolloutKey) -> Outcome:
        true = SEVERAL.roll(key)
        return Outcome(Verdict.CENSORED, true.divergence) if key.stage == "confirm" else true

    assert finished([SEVERAL.trace()], SETTINGS, other_answers).nominees == stages(SETTINGS)[0].nominees


def test_fresh_rollouts_shrink_to_what_is_left_of_the_budget() -> None:
    rich, _ = stages(SearchSettings(budget=300))
    settings = SearchSettings(budget=120, confirm_least=1)
    search, asked = stages(settings)

    assert sum(map(len, asked.values())) <= settings.budget
    assert sum(n.on_path + n.alternative for n in search.nominees) < sum(
        n.on_path + n.alternative for n in rich.nominees
    )
    assert min(n.alternative for n in search.nominees) >= settings.confirm_least


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 100))
def test_no_budget_is_exceeded_and_the_least_certain_nominees_are_left_out(
    budget: int, confirm_least: int, seed: int
) -> None:
    made = 0

    def answer(key: RolloutKey) -> Outcome:
        nonlocal made
        made += 1
        return SEVERAL.roll(key, seed)

    search = finished(
        [SEVERAL.trace()], SearchSettings(budget=budget, confirm_least=confirm_least, nominate=0.05), answer
    )

    affordable = [n for n in search.nominees if n.alternative]
    left_out = [n for n in search.nominees if not n.alternative]
    assert made <= budget
    assert [(c.completion_id, c.position) for c in search.confirmations] == [
        (n.completion_id, n.position) for n in affordable
    ]
    assert not any(n.on_path for n in left_out)
    assert min((n.posterior for n in affordable), default=1.0) >= max(
        (n.posterior for n in left_out), default=0.0
    )


def test_a_token_that_another_completion_has_after_the_same_prefix_is_searched_once() -> None:
    effects = SEVERAL.effects()
    first, second = SEVERAL.trace("a"), replace(SEVERAL.trace("b"), repeats=30)
    asked: list[RolloutKey] = []

    def answer(key: RolloutKey) -> Outcome:
        asked.append(key)
        return SEVERAL.roll(key)

    search = finished([first, second], SETTINGS, answer)

    assert {key.position for key in asked if key.completion_id == "b"} <= set(range(30, 60))
    assert {(n.completion_id, n.position) for n in search.nominees} == {
        ("a", 5),
        ("a", 20),
        ("a", 40),
        ("b", 40),
    }
    assert [k for k in range(60) if abs(effects[k]) > 0.2] == [5, 20, 40]


def test_a_completion_that_repeats_another_one_asks_for_nothing() -> None:
    repeated = replace(SEVERAL.trace("b"), repeats=60)

    search = Search([SEVERAL.trace("a"), repeated], SETTINGS)

    assert {key.completion_id for key in search.asks()} == {"a"}


def test_a_nominee_whose_rollouts_were_all_censored_stays_in_the_correction_with_no_effect() -> None:
    def answer(key: RolloutKey) -> Outcome:
        return Outcome(Verdict.CENSORED if key.stage == "confirm" else Verdict.INCORRECT, key.position)

    search = finished([Trace("c", (0.5,), succeeded=True)], SETTINGS, answer)

    assert len(search.nominees) == 1
    (found,) = search.confirmations
    assert found.p_value > 0.9
    assert (found.delta, found.low, found.high) == (0.0, -0.5, 0.5)
