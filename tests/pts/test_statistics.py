import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from steering_pts.statistics import (
    benjamini_hochberg,
    beta_posterior_between,
    paired_bootstrap_lift,
)


def test_without_draws_the_posterior_is_uniform() -> None:
    assert beta_posterior_between(0, 0, 0.2, 0.8) == pytest.approx(0.6, abs=1e-15)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_posterior_is_a_beta_distribution(
    successes: int, failures: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    expected = beta(successes + 1, failures + 1)

    assert beta_posterior_between(successes, failures, low, high) == pytest.approx(
        expected.cdf(high) - expected.cdf(low), abs=1e-12
    )


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_a_posterior_over_no_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="need 0 <= low <= high <= 1"):
        beta_posterior_between(1, 1, low, high)


def test_benjamini_and_hochbergs_own_example() -> None:
    p_values = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
    ]

    reject, _ = benjamini_hochberg(p_values, 0.05)

    assert reject.tolist() == [True] * 4 + [False] * 11


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.5))
def test_rejections_are_those_of_the_step_up_rule(p_values: list[float], level: float) -> None:
    count = len(p_values)
    passing = [p for rank, p in enumerate(sorted(p_values), start=1) if p * (count / rank) <= level]

    reject, q_values = benjamini_hochberg(p_values, level)

    assert reject.tolist() == [p <= max(passing, default=-1.0) for p in p_values]
    assert reject.tolist() == [q <= level for q in q_values]


def test_no_hypotheses_give_no_rejections() -> None:
    reject, q_values = benjamini_hochberg([], 0.1)

    assert (reject.tolist(), q_values.tolist()) == ([], [])


def test_equal_lifts_leave_no_doubt() -> None:
    assert paired_bootstrap_lift({"a": [1, 0], "b": [0.5], "c": [0, 1, 0.5]}, seed=0) == (0.5, 0.5, 0.5)


def test_a_problem_counts_once_however_many_rollouts_it_has() -> None:
    assert paired_bootstrap_lift({"a": [1.0] * 100, "b": [0.0]}, seed=0).value == 0.5


def test_the_order_of_problems_does_not_matter() -> None:
    differences = {"a": [0.0, 1.0], "b": [-1.0], "c": [1.0, 1.0]}

    assert paired_bootstrap_lift(dict(reversed(differences.items())), seed=3) == paired_bootstrap_lift(
        differences, seed=3
    )


def test_the_lift_of_many_problems_has_the_normal_interval() -> None:
    means = np.random.default_rng(1).normal(0.1, 1.0, 400)
    half = 1.96 * means.std() / math.sqrt(len(means))

    value, low, high = paired_bootstrap_lift({str(i): [mean] for i, mean in enumerate(means)}, seed=2)

    assert (low, high) == pytest.approx((value - half, value + half), abs=0.01)


def test_the_memory_of_an_interval_does_not_grow_with_the_problems() -> None:
    many = {str(problem): [float(problem % 3 == 0)] for problem in range(20_000)}

    tracemalloc.start()
    estimate = paired_bootstrap_lift(many, seed=0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(2 / 9 / 20_000), rel=0.05)
    assert most < 64 << 20


def test_the_resamples_are_those_of_one_draw() -> None:
    """What an interval is must not hang on how much of it is drawn at a time."""
    means = np.array([problem % 7 for problem in range(500)], dtype=np.float64)
    draws = np.random.default_rng(3).integers(500, size=(10_000, 500))

    estimate = paired_bootstrap_lift({f"{i:03}": [value] for i, value in enumerate(means)}, seed=3)

    assert (estimate.low, estimate.high) == tuple(np.quantile(means[draws].mean(axis=1), [0.025, 0.975]))


def test_one_problem_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two problems, not 1"):
        paired_bootstrap_lift({"a": [1.0, 0.0]}, seed=0)


def test_a_problem_without_differences_is_named() -> None:
    with pytest.raises(ValueError, match="no differences for problem b"):
        paired_bootstrap_lift({"a": [1.0], "b": []}, seed=0)


def test_a_lift_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap_lift({"a": [1.0], "b": [math.nan]}, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=r"the level must be in \(0, 1\)"):
        benjamini_hochberg([0.5], level)
