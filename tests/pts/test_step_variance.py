"""What can come at a step, its decision variance, and what draws say of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steering_engine.model import SteeredModel
from steering_pts.scoring import score_completions
from steering_pts.settings import SamplerSettings
from steering_pts.vectors.branches import Branches, branches_of
from steering_pts.vectors.trie import PrefixTrie
from steering_pts.vectors.variance import (
    as_counts,
    decision_variance,
    evidence,
    learned_share,
    variance_draws,
)

TAU = 0.2
RATES = st.floats(0, 1)
SHARES = st.lists(st.floats(0.01, 1), min_size=1, max_size=6).map(lambda xs: np.array(xs) / sum(xs))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def pivotal(draws: list[tuple[float, float]], probabilities: tuple[float, ...] = (0.5, 0.5)) -> float:
    """P(D >= tau^2) where one step in ten matters beforehand."""
    return evidence(probabilities, draws, 1 - sum(probabilities), TAU, generator()).pivotal(0.1)


# --- variance ---------------------------------------------------------------------------------------------------------


@given(RATES, RATES, RATES)
def test_of_two_branches_it_is_that_of_the_contrast(pi: float, value: float, alternative: float) -> None:
    found = decision_variance(np.array([pi, 1 - pi]), np.array([[value, alternative]]))

    assert found[0] == pytest.approx(pi * (1 - pi) * (value - alternative) ** 2)


@given(SHARES, st.data())
def test_no_outcome_exceeds_what_the_likeliest_token_allows(
    shares: np.ndarray[tuple[int], np.dtype[np.float64]], data: st.DataObject
) -> None:
    ordered = np.sort(shares)[::-1]
    values = data.draw(st.lists(RATES, min_size=len(ordered), max_size=len(ordered)))
    branches = Branches(tuple(range(len(ordered))), tuple(ordered))

    assert decision_variance(ordered, np.array([values]))[0] <= branches.largest_variance + 1e-12


@given(st.floats(0.5, 1))
def test_the_bound_is_reached_where_one_token_decides_against_all_others(pi: float) -> None:
    values = np.array([[1.0, 0.0]])

    assert decision_variance(np.array([pi, 1 - pi]), values)[0] == pytest.approx(
        Branches((1, 2), (pi, 1 - pi)).largest_variance, abs=1e-9
    )


def test_draws_surround_the_variance_that_they_were_made_with() -> None:
    draws = variance_draws((0.6, 0.4), [(1800, 200), (400, 1600)], 0.0, generator(), 2_000)

    low, high = np.quantile(draws, [0.025, 0.975])
    assert low < 0.6 * 0.4 * (0.9 - 0.2) ** 2 < high
    assert high - low < 0.02


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_draws_that_differ_make_a_step_pivotal() -> None:
    assert pivotal([(20, 0), (0, 20)]) > 0.99


def test_draws_that_agree_make_it_ordinary() -> None:
    assert pivotal([(20, 20), (20, 20)]) < 0.01


def test_without_draws_the_prior_is_what_is_known() -> None:
    found = evidence((0.5, 0.5), [(0, 0), (0, 0)], 0.0, TAU, generator())

    assert found.log_odds == pytest.approx(0)
    assert 0.02 < found.pivotal(0.1) < 0.1


def test_a_rare_token_makes_no_pivotal_step() -> None:
    """However certain its effect: it is a slip, not a decision."""
    assert pivotal([(500, 0), (0, 500)], (0.97, 0.03)) == 0


def test_what_was_not_looked_at_is_not_taken_to_be_harmless() -> None:
    seen = [(30.0, 0.0), (30.0, 0.0)]

    all_of_it = evidence((0.5, 0.5), seen, 0.0, TAU, generator()).large
    half_of_it = evidence((0.25, 0.25), seen, 0.5, TAU, generator()).large

    assert all_of_it < 0.01
    assert half_of_it > 0.3


def test_what_was_never_drawn_is_told_apart() -> None:
    found = evidence((0.5, 0.2, 0.1), [(3, 1), (0, 0), (0, 2)], 0.2, TAU, generator())

    assert found.undrawn == pytest.approx(0.2 + 0.2)


@given(st.lists(st.floats(-20, 20), max_size=30), st.floats(0.01, 0.99))
def test_a_learned_share_is_a_share(log_odds: list[float], rho: float) -> None:
    assert 0 < learned_share(log_odds, rho, 10) < 1


def test_a_share_is_learned_from_the_steps_and_kept_where_there_are_few() -> None:
    many = learned_share([8.0] * 150 + [-8.0] * 50, 0.1, 10)

    assert many == pytest.approx(150 / 200, abs=0.05)
    assert learned_share([], 0.1, 10) == pytest.approx(0.1)


@given(st.integers(0, 400), st.integers(0, 400))
def test_counts_are_found_again_from_their_posterior(successes: int, failures: int) -> None:
    posterior = stats.beta(successes + 1, failures + 1)

    found = as_counts(float(posterior.mean()), float(posterior.var()))

    assert found == pytest.approx((successes, failures), abs=1e-6 * (successes + failures + 1) ** 2)


def test_what_is_known_without_draws_counts_as_many() -> None:
    successes, failures = as_counts(1.0, 0.0)

    assert successes > 500
    assert failures < 1


# --- branches ---------------------------------------------------------------------------------------------------------


def test_branches_are_the_samplers_distribution(model: SteeredModel) -> None:
    completion = ((10, 11, 12), (40, 41, 42))
    sampler = SamplerSettings(temperature=0.3, top_k=5)

    (found,) = branches_of(model.loaded, [completion], sampler, least=0.01)
    (own,) = score_completions(model.loaded, [completion], sampler)

    for here, token_id, probability in zip(found, completion[1], own, strict=True):
        assert list(here.probabilities) == sorted(here.probabilities, reverse=True)
        assert min(here.probabilities) >= 0.01
        assert sum(here.probabilities) + here.rest == pytest.approx(1)
        if probability >= 0.01:
            assert here.probabilities[here.ids.index(token_id)] == pytest.approx(probability)
        else:
            assert token_id not in here.ids


def test_the_likeliest_token_is_a_branch_however_unlikely(model: SteeredModel) -> None:
    (found,) = branches_of(model.loaded, [((10,), (40,))], SamplerSettings(temperature=50), least=0.9)

    assert len(found[0].ids) == 1
    assert found[0].rest == pytest.approx(1 - found[0].probabilities[0])


# --- trie -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12), st.lists(st.integers(0, 2), max_size=6)
)
def test_a_prefix_is_found_by_its_ids_and_by_no_others(sequences: list[list[int]], asked: list[int]) -> None:
    trie = PrefixTrie()
    nodes = {tuple(s[:k]): node for s in sequences for k, node in enumerate(trie.add(s))}

    assert len(set(nodes.values())) == len(nodes)
    assert trie.find(asked) == nodes.get(tuple(asked), 0 if not asked else None)
    assert trie.path(asked) == [
        0,
        *(nodes[tuple(asked[:k])] for k in range(1, len(asked) + 1) if tuple(asked[:k]) in nodes),
    ]
