import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import xlogy
from scipy.stats import beta

from steering_pts.statistics import (
    benjamini_hochberg,
    beta_posterior_between,
    difference_interval,
    paired_bootstrap_lift,
    score_test_p,
)


@st.composite
def two_samples(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n1, n2 = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return draw(st.integers(0, n1)), n1, draw(st.integers(0, n2)), n2


def score_p_by_search(x1: int, n1: int, x2: int, n2: int, margin: float) -> float:
    """The definition itself, with the constrained likelihood maximised over a fine grid."""
    q1 = np.linspace(margin, 1, 1_000_001)
    q2 = np.clip(q1 - margin, 0, 1)
    best = np.argmax(xlogy(x1, q1) + xlogy(n1 - x1, 1 - q1) + xlogy(x2, q2) + xlogy(n2 - x2, 1 - q2))
    deviation = math.sqrt(q1[best] * (1 - q1[best]) / n1 + q2[best] * (1 - q2[best]) / n2)
    return 1 - NormalDist().cdf((x1 / n1 - x2 / n2 - margin) / deviation)


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


# 20/24 against 2/24 at 0.5 is where statsmodels 0.15 gives 0.0151.
@pytest.mark.parametrize(
    "case",
    [
        (20, 24, 2, 24, 0.5),
        (0, 24, 1, 24, 0.1),
        (12, 24, 3, 24, 0.2),
        (24, 24, 0, 24, 0.2),
        (24, 24, 20, 24, 0.1),
        (24, 24, 24, 24, 0.1),
        (0, 24, 0, 24, 0.1),
        (0, 24, 24, 24, 0.125),
        (10, 32, 5, 24, 0.3),
        (17, 24, 6, 31, 0.0),
        (3, 5, 1, 5, 0.999),
    ],
)
def test_the_score_test_maximises_the_constrained_likelihood(case: tuple[int, int, int, int, float]) -> None:
    assert score_test_p(*case) == pytest.approx(score_p_by_search(*case), abs=1e-6)


def test_without_a_margin_the_score_test_pools_both_samples() -> None:
    pooled = (9 + 3) / (20 + 30)
    z = (9 / 20 - 3 / 30) / math.sqrt(pooled * (1 - pooled) * (1 / 20 + 1 / 30))

    assert score_test_p(9, 20, 3, 30, 0.0) == pytest.approx(1 - NormalDist().cdf(z), abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 1e-9, 0.1, 0.125, 0.5, 0.9, 0.999999, 1 - 1e-12, 1.0, 2.5])
@pytest.mark.parametrize("draws", [(1, 1), (5, 5), (24, 24), (32, 9)])
def test_the_score_test_is_a_probability_in_every_corner(draws: tuple[int, int], margin: float) -> None:
    n1, n2 = draws
    for x1, x2 in itertools.product(range(n1 + 1), range(n2 + 1)):
        assert 0 <= score_test_p(x1, n1, x2, n2, margin) <= 1


@pytest.mark.parametrize("count", [0, 24])
def test_two_samples_that_never_differ_say_nothing_without_a_margin(count: int) -> None:
    assert score_test_p(count, 24, count, 24, 0.0) == 0.5


def test_nothing_exceeds_a_margin_of_one() -> None:
    assert score_test_p(24, 24, 0, 24, 1.0) == 1.0


@settings(deadline=None)
@given(two_samples(), st.floats(0, 1))
def test_more_successes_in_the_better_arm_never_raise_p(
    sample: tuple[int, int, int, int], margin: float
) -> None:
    _, n1, x2, n2 = sample
    p_values = [score_test_p(x1, n1, x2, n2, margin) for x1 in range(n1 + 1)]

    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(p_values))


@settings(deadline=None)
@given(two_samples(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_never_lowers_p(sample: tuple[int, int, int, int], one: float, other: float) -> None:
    smaller, larger = sorted((one, other))

    assert score_test_p(*sample, smaller) <= score_test_p(*sample, larger) + 1e-6


@pytest.mark.parametrize("p2", [0.05, 0.3, 0.6])
def test_at_the_margin_the_score_test_rejects_about_as_often_as_it_says(p2: float) -> None:
    margin, n, level, runs = 0.25, 24, 0.05, 20_000
    rng = np.random.default_rng(11)
    table = np.array([[score_test_p(x1, n, x2, n, margin) for x2 in range(n + 1)] for x1 in range(n + 1)])

    rejected = table[rng.binomial(n, p2 + margin, runs), rng.binomial(n, p2, runs)] <= level

    # Counts are discrete, so the level is met only roughly: within a quarter of it.
    assert rejected.mean() == pytest.approx(level, abs=level / 4)


@pytest.mark.parametrize("counts", [(3, 2, 0, 1), (-1, 2, 0, 1), (0, 0, 0, 1), (0, 1, 2, 1)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="can't be"):
        score_test_p(*counts, 0.1)
    with pytest.raises(ValueError, match="can't be"):
        difference_interval(*counts, 1.0)


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_a_negative_margin_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        score_test_p(1, 2, 1, 2, margin)


def test_the_interval_is_agresti_and_caffos_times_the_scale() -> None:
    p1, p2 = (20 + 1) / (24 + 2), (6 + 1) / (32 + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(p1 * (1 - p1) / 26 + p2 * (1 - p2) / 34)

    estimate = difference_interval(20, 24, 6, 32, 0.7)

    assert estimate.value == pytest.approx(0.7 * (20 / 24 - 6 / 32), abs=1e-15)
    assert estimate.low == pytest.approx(0.7 * (p1 - p2 - half), abs=1e-12)
    assert estimate.high == pytest.approx(0.7 * (p1 - p2 + half), abs=1e-12)


@settings(deadline=None)
@given(two_samples(), st.floats(0, 1))
def test_the_interval_holds_the_estimate_and_nothing_impossible(
    sample: tuple[int, int, int, int], scale: float
) -> None:
    value, low, high = difference_interval(*sample, scale)

    assert -scale <= low <= value <= high <= scale


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for x1, x2 in zip(rng.binomial(24, 0.7, 4000), rng.binomial(24, 0.4, 4000), strict=True):
        _, low, high = difference_interval(int(x1), 24, int(x2), 24, 0.5)
        covered += low <= 0.15 <= high

    assert covered / 4000 == pytest.approx(0.95, abs=0.015)


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
