"""The search against simulated completions, of which every probability is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.ledger.records import ConfirmationRecord, NomineeRecord, RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search import CompletionSearch, Outcome, Trace, candidates, effect_posterior
from steering_pts.seeds import derive_seed
from steering_pts.settings import SearchSettings
from steering_pts.statistics import score_test_p

SETTINGS = SearchSettings()
counts = st.tuples(st.integers(0, 30), st.integers(0, 30))


@dataclass(frozen=True)
class Simulation:
    """A completion that succeeded or failed, with pi_k and A_k of every token; every V_k follows from them."""

    pi: tuple[float, ...]
    alternative: tuple[float, ...]
    succeeded: bool = True

    def values(self) -> list[float]:
        """V_k, P(success | the first k tokens), for k = 0 … T."""
        values = [float(self.succeeded)]
        for pi, alternative in zip(reversed(self.pi), reversed(self.alternative), strict=True):
            values.append(pi * values[-1] + (1 - pi) * alternative)
        return values[::-1]

    def effects(self) -> list[float]:
        """V_{k+1} - V_k of token k."""
        values = self.values()
        return [after - before for before, after in itertools.pairwise(values)]

    def roll(self, key: RolloutKey, seed: int = 0) -> Outcome:
        """One rollout, the same for the same key and seed."""
        chance = random.Random(derive_seed(seed, key.position, key.arm, key.stage, key.index))
        left_at = key.position
        if key.arm == "on_path":
            left_at += 1
            while left_at < len(self.pi) and chance.random() < self.pi[left_at]:
                left_at += 1
            if left_at == len(self.pi):
                return Outcome(Verdict.CORRECT if self.succeeded else Verdict.INCORRECT, None)
        success = chance.random() < self.alternative[left_at]
        return Outcome(Verdict.CORRECT if success else Verdict.INCORRECT, left_at)

    def search(self, seed: int = 0, settings: SearchSettings = SETTINGS) -> CompletionSearch:
        """A search that has ended."""
        search = CompletionSearch(Trace(f"c{seed}", self.pi), settings)
        while asks := search.asks():
            search.tell({key: self.roll(key, seed) for key in asks})
        return search


def simulation(
    length: int, forks: Sequence[int], effects: dict[int, float], rest: float = 0.97
) -> Simulation:
    """A success with forks that have no effect (pi = 0.5), and planted effects (pi = 0.3)."""
    pi = [0.3 if k in effects else 0.5 if k in forks else rest for k in range(length)]
    alternative = [0.0] * length
    value = 1.0
    for k in reversed(range(length)):
        alternative[k] = value - effects.get(k, 0.0) / (1 - pi[k])
        assert -1e-12 <= alternative[k] <= 1 + 1e-12, "such an effect can't be"
        value = pi[k] * value + (1 - pi[k]) * alternative[k]
    return Simulation(tuple(pi), tuple(alternative))


PLANTED = {5: 0.3, 20: -0.3, 40: 0.45}
OPPOSITE = {10: -0.35, 11: 0.35, 30: 0.4}


def told(trace: Trace, settings: SearchSettings, outcome: Outcome) -> Iterator[list[RolloutKey]]:
    """Every batch of a search that always hears the same."""
    search = CompletionSearch(trace, settings)
    while asks := search.asks():
        yield asks
        search.tell(dict.fromkeys(asks, outcome))


# --- the screen -------------------------------------------------------------------------------------------------------


def test_the_screen_keeps_what_could_be_pivotal_at_all() -> None:
    assert candidates((1.0, 0.81, 0.79, 0.5, 0.0), tau=0.2) == (2, 3, 4)


def test_a_token_at_the_bound_of_the_screen_stays() -> None:
    assert candidates((0.5,), tau=0.5) == (0,)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    st.booleans(),
    st.floats(0.01, 0.9),
)
def test_the_screen_never_loses_a_pivotal_token(
    tokens: list[tuple[float, float]], succeeded: bool, tau: float
) -> None:
    simulated = Simulation(tuple(pi for pi, _ in tokens), tuple(a for _, a in tokens), succeeded)

    pivotal = {k for k, effect in enumerate(simulated.effects()) if abs(effect) > tau + 1e-12}

    assert pivotal <= set(candidates(simulated.pi, tau))


def test_a_completion_without_candidates_asks_for_nothing() -> None:
    search = CompletionSearch(Trace("c", (1.0, 0.99)), SETTINGS)

    assert (search.asks(), search.done, search.nominees, search.confirmations) == ([], True, [], [])


# --- the posterior of an effect ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(counts, counts, st.floats(0.2, 1.0))
def test_the_posterior_is_what_sampling_from_it_gives(
    on_path: tuple[int, int], alternative: tuple[int, int], scale: float
) -> None:
    draws = np.random.default_rng(0)
    v, a = (draws.beta(s + 1, f + 1, 40_000) for s, f in (on_path, alternative))
    effect = scale * (v - a)

    above, below = effect_posterior(on_path, alternative, scale, 0.2)

    # Four standard errors of 40,000 draws are at most 0.01.
    assert above == pytest.approx(np.mean(effect >= 0.2), abs=0.011)
    assert below == pytest.approx(np.mean(effect <= -0.2), abs=0.011)


@given(counts, counts, st.floats(0.2, 1.0))
def test_successes_and_failures_are_mirror_images(
    on_path: tuple[int, int], alternative: tuple[int, int], scale: float
) -> None:
    above, below = effect_posterior(on_path, alternative, scale, 0.2)

    mirrored = effect_posterior(on_path[::-1], alternative[::-1], scale, 0.2)

    assert mirrored == pytest.approx((below, above), abs=1e-9)


@given(counts, counts, st.floats(0.2, 1.0))
def test_the_two_arms_are_treated_alike(
    on_path: tuple[int, int], alternative: tuple[int, int], scale: float
) -> None:
    above, below = effect_posterior(on_path, alternative, scale, 0.2)

    exchanged = effect_posterior(alternative, on_path, scale, 0.2)

    assert exchanged == pytest.approx((below, above), abs=1e-3)  # only one of them is on the grid


@given(counts, counts, st.floats(0.2, 1.0))
def test_one_more_success_with_the_token_speaks_for_it(
    on_path: tuple[int, int], alternative: tuple[int, int], scale: float
) -> None:
    before = effect_posterior(on_path, alternative, scale, 0.2)
    after = effect_posterior((on_path[0] + 1, on_path[1]), alternative, scale, 0.2)

    assert after[0] >= before[0] - 1e-12
    assert after[1] <= before[1] + 1e-12


def test_without_rollouts_nothing_is_known() -> None:
    # V and A are uniform and independent: P(V - A >= m) = (1 - m)^2 / 2.
    assert effect_posterior((0, 0), (0, 0), 0.5, 0.2) == pytest.approx((0.18, 0.18), abs=1e-6)


def test_an_effect_as_large_as_the_scale_has_probability_zero() -> None:
    assert effect_posterior((30, 0), (0, 30), 0.2, 0.2) == (0.0, 0.0)


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [PLANTED, OPPOSITE])
def test_planted_effects_are_found_with_their_sign_and_nothing_else(planted: dict[int, float]) -> None:
    simulated = simulation(60, forks=range(0, 60, 6), effects=planted)
    found: dict[int, list[ConfirmationRecord]] = {}

    for seed in range(20):
        for confirmation in simulated.search(seed, SearchSettings(confirm=64)).confirmations:
            if confirmation.p_value <= 0.02:
                found.setdefault(confirmation.position, []).append(confirmation)

    assert set(found) == set(planted)
    for position, effect in planted.items():
        assert len(found[position]) >= 16, f"the effect at {position} is missed too often"
        assert all(confirmation.delta * effect > 0 for confirmation in found[position])


def test_the_reported_effect_has_no_winners_curse() -> None:
    simulated = simulation(40, forks=[3, 9, 25], effects={15: 0.25})

    deltas = [
        c.delta for seed in range(150) for c in simulated.search(seed).confirmations if c.position == 15
    ]

    assert len(deltas) > 60
    assert np.mean(deltas) == pytest.approx(0.25, abs=4 * np.std(deltas) / len(deltas) ** 0.5)


def test_the_interval_of_a_reported_effect_holds_it_about_as_often_as_it_says() -> None:
    simulated = simulation(40, forks=[3, 9, 25], effects={15: 0.25, 30: 0.3})
    truth = simulated.effects()

    covered = [
        c.low <= truth[c.position] <= c.high
        for seed in range(100)
        for c in simulated.search(seed).confirmations
    ]

    assert np.mean(covered) >= 0.92


def test_forks_without_effect_are_hardly_ever_nominated() -> None:
    simulated = simulation(60, forks=range(0, 60, 4), effects={30: 0.4})

    nominees = [nominee.position for seed in range(50) for nominee in simulated.search(seed).nominees]

    assert len([position for position in nominees if position != 30]) <= 50 * 14 * 0.02


def test_forks_without_effect_are_confirmed_no_more_often_than_the_level_says() -> None:
    simulated = simulation(60, forks=range(0, 60, 4), effects={30: 0.4})
    careless = SearchSettings(nominate=0.05)  # so that the confirmation alone has to hold the level

    p_values = np.array(
        [
            c.p_value
            for seed in range(60)
            for c in simulated.search(seed, careless).confirmations
            if c.position != 30
        ]
    )

    assert len(p_values) > 50
    assert np.mean(p_values <= 0.05) <= 0.05
    assert np.mean(p_values <= 0.1) <= 0.1


def test_effects_at_the_bound_are_confirmed_about_as_often_as_the_level_says() -> None:
    simulated = simulation(30, forks=[2], effects={20: 0.45, 10: SETTINGS.delta0})

    careless = SearchSettings(nominate=0.05)

    p_values = np.array(
        [
            confirmation.p_value
            for seed in range(300)
            for confirmation, nominee in _confirmed(simulated.search(seed, careless))
            if confirmation.position == 10 and nominee.sign > 0
        ]
    )

    assert len(p_values) > 100
    assert np.mean(p_values <= 0.1) == pytest.approx(0.1, abs=4 * (0.09 / len(p_values)) ** 0.5)


def _confirmed(search: CompletionSearch) -> list[tuple[ConfirmationRecord, NomineeRecord]]:
    nominees = {nominee.position: nominee for nominee in search.nominees}
    return [(confirmation, nominees[confirmation.position]) for confirmation in search.confirmations]


def test_a_decided_completion_is_explored_no_longer_than_needed() -> None:
    clear, unclear = (simulation(30, forks=[4], effects={20: effect}) for effect in (0.6, 0.2))

    def explored(simulated: Simulation) -> int:
        return sum(simulated.search(seed)._explored[20] for seed in range(20))

    assert explored(clear) < explored(unclear) / 2


def test_exploration_of_a_candidate_ends_at_its_most() -> None:
    for asks in told(Trace("c", (0.5,)), SearchSettings(ambiguity=1e-9), Outcome(Verdict.CENSORED)):
        assert all(key.index < SETTINGS.explore_most for key in asks)


def test_asking_and_telling_is_deterministic() -> None:
    simulated = simulation(60, forks=range(0, 60, 6), effects=PLANTED)

    one, other = simulated.search(3), simulated.search(3)

    assert one.nominees == other.nominees
    assert one.confirmations == other.confirmations


def test_asking_twice_asks_for_the_same() -> None:
    search = CompletionSearch(Trace("c", (0.5, 0.9, 0.3)), SETTINGS)

    assert search.asks() == search.asks()


def test_no_rollout_is_asked_for_twice() -> None:
    simulated = simulation(60, forks=range(0, 60, 6), effects=PLANTED)
    search = CompletionSearch(Trace("c", simulated.pi), SETTINGS)
    seen: set[RolloutKey] = set()

    while asks := search.asks():
        assert len(asks) == len(set(asks))
        assert not seen & set(asks)
        seen |= set(asks)
        search.tell({key: simulated.roll(key) for key in asks})

    assert search.done


def test_rollouts_that_could_retake_the_token_are_never_asked_for() -> None:
    # An arm `base` would draw the token at the position freely.
    for asks in told(Trace("c", (0.5, 0.2)), SETTINGS, Outcome(Verdict.CORRECT, None)):
        assert {key.arm for key in asks} == {"on_path", "alternative"}


def test_only_candidates_are_rolled_from() -> None:
    for asks in told(Trace("c", (0.5, 0.99, 0.2)), SETTINGS, Outcome(Verdict.INCORRECT, 0)):
        assert {key.position for key in asks} <= {0, 2}


def test_confirmation_uses_fresh_rollouts_on_both_sides_of_every_nominee() -> None:
    simulated = simulation(60, forks=range(0, 60, 6), effects=PLANTED)
    search = CompletionSearch(Trace("c", simulated.pi), SETTINGS)
    asks: list[RolloutKey] = []
    while new := search.asks():
        asks = new
        search.tell({key: simulated.roll(key) for key in asks})

    assert {key.stage for key in asks} == {"confirm"}
    for nominee in search.nominees:
        for arm in ("on_path", "alternative"):
            indices = [key.index for key in asks if (key.position, key.arm) == (nominee.position, arm)]
            assert indices == list(range(SETTINGS.confirm))


# --- what a rollout counts for ----------------------------------------------------------------------------------------


def first_answers(search: CompletionSearch, special: dict[tuple[int, str], Outcome]) -> None:
    """Tells the first round: the outcome of `special` for a position and arm, else a censored one."""
    search.tell({key: special.get((key.position, key.arm), CENSORED) for key in search.asks()})


CENSORED = Outcome(Verdict.CENSORED, None)


def test_a_rollout_that_leaves_the_path_later_counts_for_the_position_where_it_leaves() -> None:
    search = CompletionSearch(Trace("c", (0.5, 0.99, 0.5)), SETTINGS)

    first_answers(search, {(0, "on_path"): Outcome(Verdict.CORRECT, 2)})

    first = SETTINGS.explore_first
    assert (search._on_path[0].successes, search._alternative[0].successes) == (first, 0)
    assert (search._on_path[2].successes, search._alternative[2].successes) == (0, first)


def test_a_rollout_that_leaves_the_path_at_no_candidate_counts_where_it_began_only() -> None:
    search = CompletionSearch(Trace("c", (0.5, 0.99, 0.5)), SETTINGS)

    first_answers(search, {(0, "on_path"): Outcome(Verdict.INCORRECT, 1)})

    assert search._on_path[0].failures == SETTINGS.explore_first
    assert search._alternative[2].judged == 0


def test_an_alternative_counts_for_its_own_position_only() -> None:
    search = CompletionSearch(Trace("c", (0.5, 0.99, 0.5)), SETTINGS)

    first_answers(search, {(0, "alternative"): Outcome(Verdict.CORRECT, 0)})

    assert search._alternative[0].successes == SETTINGS.explore_first
    assert search._alternative[2].judged == 0


def test_reused_rollouts_do_not_enter_the_confirmation() -> None:
    simulated = simulation(60, forks=range(0, 60, 6), effects=PLANTED)

    for confirmation in simulated.search(0).confirmations:
        assert confirmation.n1 == confirmation.n2 == SETTINGS.confirm


def confirm(on_path: Sequence[Verdict], alternative: Sequence[Verdict], positive: bool) -> ConfirmationRecord:
    """The confirmation of a token with pi = 0.5, nominated with a sign, from these fresh verdicts."""
    settings = SearchSettings(confirm=len(on_path))
    search = CompletionSearch(Trace("c", (0.5,)), settings)
    good, bad = Outcome(Verdict.CORRECT, None), Outcome(Verdict.INCORRECT, None)
    verdicts = {"on_path": on_path, "alternative": alternative}
    while asks := search.asks():
        if asks[0].stage == "confirm":
            search.tell({key: Outcome(verdicts[key.arm][key.index]) for key in asks})
        else:
            search.tell({key: good if (key.arm == "on_path") == positive else bad for key in asks})
    (confirmation,) = search.confirmations
    return confirmation


C, X, Z = Verdict.CORRECT, Verdict.INCORRECT, Verdict.CENSORED


def test_a_confirmation_is_the_score_test_at_the_scaled_bound() -> None:
    confirmation = confirm([C] * 20 + [X] * 4, [C] * 4 + [X] * 20, positive=True)

    assert (confirmation.x1, confirmation.n1, confirmation.x2, confirmation.n2) == (20, 24, 4, 24)
    assert confirmation.p_value == score_test_p(20, 24, 4, 24, SETTINGS.delta0 / 0.5)
    assert confirmation.delta == pytest.approx(0.5 * (20 / 24 - 4 / 24))


def test_a_negative_nominee_is_tested_the_other_way_round() -> None:
    confirmation = confirm([C] * 4 + [X] * 20, [C] * 20 + [X] * 4, positive=False)

    assert confirmation.p_value == score_test_p(20, 24, 4, 24, SETTINGS.delta0 / 0.5)
    assert confirmation.delta == pytest.approx(-0.5 * (20 / 24 - 4 / 24))


@pytest.mark.parametrize("positive", [True, False])
def test_censored_rollouts_count_against_the_effect_in_the_test_and_not_at_all_in_the_estimate(
    positive: bool,
) -> None:
    better, worse = [C] * 18 + [X] * 2 + [Z] * 4, [C] * 2 + [X] * 19 + [Z] * 3
    sides = (better, worse) if positive else (worse, better)

    confirmation = confirm(*sides, positive=positive)

    assert confirmation.p_value == score_test_p(18, 24, 2 + 3, 24, SETTINGS.delta0 / 0.5)
    assert abs(confirmation.delta) == pytest.approx(0.5 * (18 / 20 - 2 / 21))


@given(
    st.lists(st.sampled_from([C, X, Z]), min_size=8, max_size=8),
    st.lists(st.sampled_from([C, X, Z]), min_size=8, max_size=8),
    st.booleans(),
)
def test_no_verdict_could_have_been_worse_for_the_effect_than_censored(
    on_path: list[Verdict], alternative: list[Verdict], positive: bool
) -> None:
    if all(v is Z for v in on_path) or all(v is Z for v in alternative):
        return
    p_value = confirm(on_path, alternative, positive=positive).p_value
    for verdict in (C, X):
        filled = [[verdict if v is Z else v for v in arm] for arm in (on_path, alternative)]

        assert confirm(filled[0], filled[1], positive=positive).p_value <= p_value + 1e-12


def test_a_nominee_with_an_arm_that_was_censored_throughout_stays_in_the_correction_with_no_effect() -> None:
    search = CompletionSearch(Trace("c", (0.5,)), SETTINGS)
    good, bad = Outcome(Verdict.CORRECT, None), Outcome(Verdict.INCORRECT, None)
    while asks := search.asks():
        on_path = CENSORED if asks[0].stage == "confirm" else good
        search.tell({key: on_path if key.arm == "on_path" else bad for key in asks})

    assert search.done
    assert len(search.nominees) == 1
    (confirmation,) = search.confirmations
    assert confirmation.p_value > 0.99
    assert (confirmation.delta, confirmation.low, confirmation.high) == (0.0, -0.5, 0.5)
