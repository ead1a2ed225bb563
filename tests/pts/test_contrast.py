"""The score test and the interval of a weighted contrast of two binomials."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binom, binomtest
from statsmodels.stats.proportion import confint_proportions_2indep

from steering_pts.statistics import Draws, contrast_interval, contrast_p

BOTH = (1.0, 1.0)


@st.composite
def two_samples(draw: st.DrawFn) -> tuple[Draws, Draws]:
    n1, n2 = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return (draw(st.integers(0, n1)), n1), (draw(st.integers(0, n2)), n2)


weights = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1))


def p_by_search(first: Draws, second: Draws, weights: tuple[float, float], margin: float) -> float:
    """The definition itself, with the constrained likelihood maximised over a fine grid."""
    (x1, n1), (x2, n2), (w1, w2) = first, second, weights
    q2 = np.linspace(max(0.0, -margin / w2), min(1.0, (w1 - margin) / w2), 200_001)
    q1 = np.clip((margin + w2 * q2) / w1, 0, 1)
    best = np.argmax(xlogy(x1, q1) + xlogy(n1 - x1, 1 - q1) + xlogy(x2, q2) + xlogy(n2 - x2, 1 - q2))
    variance = w1**2 * q1[best] * (1 - q1[best]) / n1 + w2**2 * q2[best] * (1 - q2[best]) / n2
    if variance <= 0:
        return 0.5
    return 1 - NormalDist().cdf((w1 * x1 / n1 - w2 * x2 / n2 - margin) / math.sqrt(variance))


def p_by_cubic(first: Draws, second: Draws, margin: float) -> float:
    """Both weights 1: the middle root of the cubic in Farrington and Manning's appendix, in their names."""
    (x1, n1), (x2, n2) = first, second
    p1, p2, theta = x1 / n1, x2 / n2, n2 / n1
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + margin * (theta + 2))
    c = margin**2 + margin * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * margin * (1 + margin)
    v = (b / (3 * a)) ** 3 - b * c / (6 * a**2) + d / (2 * a)
    u = math.copysign(math.sqrt(max((b / (3 * a)) ** 2 - c / (3 * a), 0.0)), v)
    cosine = min(max(v / u**3, -1.0), 1.0) if abs(u) > 1e-9 else 0.0
    q1 = min(max(2 * u * math.cos((math.pi + math.acos(cosine)) / 3) - b / (3 * a), margin), 1.0)
    q2 = q1 - margin
    deviation = math.sqrt(q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2)
    return 1 - NormalDist().cdf((p1 - p2 - margin) / deviation)


# --- the test ---------------------------------------------------------------------------------------------------------


# 20/24 against 2/24 at 0.5 is where statsmodels 0.15 gives 0.0151.
@pytest.mark.parametrize(
    ("first", "second", "margin"),
    [
        ((20, 24), (2, 24), 0.5),
        ((0, 24), (1, 24), 0.1),
        ((12, 24), (3, 24), 0.2),
        ((24, 24), (0, 24), 0.2),
        ((24, 24), (20, 24), 0.1),
        ((24, 24), (24, 24), 0.1),
        ((0, 24), (0, 24), 0.1),
        ((0, 24), (24, 24), 0.125),
        ((10, 32), (5, 24), 0.3),
        ((17, 24), (6, 31), 0.0),
        ((3, 5), (1, 5), 0.999),
    ],
)
def test_with_weights_of_one_it_is_farrington_and_mannings(
    first: Draws, second: Draws, margin: float
) -> None:
    p_value = contrast_p(first, second, BOTH, margin)

    assert p_value == pytest.approx(p_by_cubic(first, second, margin), abs=1e-7)
    assert p_value == pytest.approx(p_by_search(first, second, BOTH, margin), abs=1e-5)


@given(two_samples(), st.floats(0.01, 0.95))
def test_with_weights_of_one_the_cubic_gives_the_same(samples: tuple[Draws, Draws], margin: float) -> None:
    assert contrast_p(*samples, BOTH, margin) == pytest.approx(p_by_cubic(*samples, margin), abs=1e-6)


@given(two_samples(), weights, st.floats(0.02, 0.98))
def test_with_any_weights_it_maximises_the_constrained_likelihood(
    samples: tuple[Draws, Draws], weights: tuple[float, float], share: float
) -> None:
    margin = -weights[1] + share * sum(weights)

    assert contrast_p(*samples, weights, margin) == pytest.approx(
        p_by_search(*samples, weights, margin), abs=1e-4
    )


def test_without_a_margin_it_pools_both_samples() -> None:
    pooled = (9 + 3) / (20 + 30)
    z = (9 / 20 - 3 / 30) / math.sqrt(pooled * (1 - pooled) * (1 / 20 + 1 / 30))

    assert contrast_p((9, 20), (3, 30), BOTH, 0.0) == pytest.approx(1 - NormalDist().cdf(z), abs=1e-12)


def test_a_side_of_weight_zero_leaves_the_exact_test_of_the_other() -> None:
    first = contrast_p((18, 24), (0, 0), (0.8, 0.0), 0.4)
    second = contrast_p((0, 0), (3, 24), (0.0, 1.0), -0.6)

    assert first == pytest.approx(binomtest(18, 24, 0.5, alternative="greater").pvalue, rel=1e-9)
    assert second == pytest.approx(binomtest(3, 24, 0.6, alternative="less").pvalue, rel=1e-9)


@given(st.integers(1, 96), st.floats(0.01, 0.99), st.floats(0.001, 0.2))
def test_of_one_rate_alone_it_never_rejects_more_often_than_it_says(
    n: int, rate: float, level: float
) -> None:
    p_values = np.array([contrast_p((0, 0), (x, n), (0.0, 1.0), -rate) for x in range(n + 1)])

    assert outcomes(n, rate)[p_values <= level].sum() <= level + 1e-9


@pytest.mark.parametrize("margin", [0.0, 1e-9, 0.1, 0.125, 0.5, 0.9, 0.999999, 1 - 1e-12, 1.0, 2.5])
@pytest.mark.parametrize("weights", [BOTH, (0.3, 1.0), (1e-5, 1.0), (1.0, 0.01), (1.0, 0.0)])
def test_it_is_a_probability_in_every_corner(weights: tuple[float, float], margin: float) -> None:
    for n1, n2 in ((1, 1), (5, 5), (32, 9)):
        for x1, x2 in itertools.product(range(n1 + 1), range(n2 + 1)):
            for bound in (margin, margin - weights[1]):
                assert 0 <= contrast_p((x1, n1), (x2, n2), weights, bound) <= 1


@pytest.mark.parametrize("count", [0, 24])
def test_two_samples_that_never_differ_say_nothing_without_a_margin(count: int) -> None:
    assert contrast_p((count, 24), (count, 24), BOTH, 0.0) == 0.5


def test_rounding_of_the_margin_makes_no_evidence_of_samples_that_never_differ() -> None:
    for leave in np.linspace(0.01, 0.99, 99):
        assert contrast_p((24, 24), (24, 24), (leave, 1.0), -(1 - leave)) == 0.5


@pytest.mark.parametrize(("weights", "margin"), [(BOTH, 1.0), ((0.3, 1.0), 0.3)])
def test_nothing_exceeds_all_that_the_first_side_can_give(
    weights: tuple[float, float], margin: float
) -> None:
    assert contrast_p((24, 24), (0, 24), weights, margin) == 1.0


def test_one_failure_of_the_other_side_refutes_that_it_always_succeeds() -> None:
    # A contrast of -1 or less leaves no other rate than 1.
    assert contrast_p((0, 0), (24, 24), (0.0, 1.0), -1.0) == 1.0
    assert contrast_p((0, 0), (23, 24), (0.0, 1.0), -1.0) == 0.0


@given(two_samples(), weights, st.floats(0, 1))
def test_more_successes_of_the_better_side_never_raise_p(
    samples: tuple[Draws, Draws], weights: tuple[float, float], share: float
) -> None:
    (_, n1), second = samples
    margin = -weights[1] + share * sum(weights)
    p_values = [contrast_p((x1, n1), second, weights, margin) for x1 in range(n1 + 1)]

    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(p_values))


@given(two_samples(), weights, st.floats(0, 1))
def test_more_successes_of_the_other_side_never_lower_p(
    samples: tuple[Draws, Draws], weights: tuple[float, float], share: float
) -> None:
    first, (_, n2) = samples
    margin = -weights[1] + share * sum(weights)
    p_values = [contrast_p(first, (x2, n2), weights, margin) for x2 in range(n2 + 1)]

    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(p_values))


@given(two_samples(), weights, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_never_lowers_p(
    samples: tuple[Draws, Draws], weights: tuple[float, float], one: float, other: float
) -> None:
    smaller, larger = (-weights[1] + share * sum(weights) for share in sorted((one, other)))

    assert contrast_p(*samples, weights, smaller) <= contrast_p(*samples, weights, larger) + 1e-6


def outcomes(n: int, rate: float) -> NDArray[np.float64]:
    """How likely each number of successes is."""
    return np.asarray(binom.pmf(np.arange(n + 1), n, rate))


@pytest.mark.parametrize("n", [(24, 24), (48, 24), (96, 96)])
@pytest.mark.parametrize("weights", [BOTH, (0.6, 1.0)])
@pytest.mark.parametrize("p2", [0.1, 0.3, 0.6])
def test_at_the_bound_it_rejects_about_as_often_as_it_says(
    n: tuple[int, int], weights: tuple[float, float], p2: float
) -> None:
    level, p1 = 0.05, min(0.95, p2 + 0.25)
    margin = weights[0] * p1 - weights[1] * p2
    chances = np.outer(outcomes(n[0], p1), outcomes(n[1], p2))

    rejected = sum(
        float(chances[x1, x2])
        for x1, x2 in itertools.product(range(n[0] + 1), range(n[1] + 1))
        if chances[x1, x2] > 1e-9 and contrast_p((x1, n[0]), (x2, n[1]), weights, margin) <= level
    )

    # Exact, but counts are discrete, so the level is met only roughly: within a third of it.
    assert rejected == pytest.approx(level, abs=level / 3)


@pytest.mark.parametrize(
    ("first", "second", "weights"),
    [
        ((3, 2), (0, 1), BOTH),
        ((-1, 2), (0, 1), BOTH),
        ((0, 0), (0, 1), BOTH),
        ((0, 1), (2, 1), BOTH),
        ((1, 0), (0, 1), (0.0, 1.0)),
    ],
)
def test_impossible_counts_are_refused(first: Draws, second: Draws, weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="can't be"):
        contrast_p(first, second, weights, 0.1)
    with pytest.raises(ValueError, match="can't be"):
        contrast_interval(first, second, weights, 0.0, 1.0)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"a weight must be in \[0, 1\]"):
        contrast_p((1, 2), (1, 2), (weight, 1.0), 0.1)


@pytest.mark.parametrize("margin", [-0.51, math.nan])
def test_a_margin_that_nothing_falls_short_of_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=r"exceeded whatever is drawn; expected at least -0\.5"):
        contrast_p((1, 2), (1, 2), (1.0, 0.5), margin)


# --- the interval -----------------------------------------------------------------------------------------------------


@given(two_samples(), st.floats(0.5, 0.99))
def test_with_weights_of_one_the_interval_is_agresti_and_caffos(
    samples: tuple[Draws, Draws], level: float
) -> None:
    (x1, n1), (x2, n2) = samples
    low, high = confint_proportions_2indep(
        x1, n1, x2, n2, method="agresti-caffo", compare="diff", alpha=1 - level
    )

    estimate = contrast_interval(*samples, BOTH, 0.0, 1.0, level=level)

    assert estimate.value == pytest.approx(x1 / n1 - x2 / n2, abs=1e-12)
    assert estimate.low == pytest.approx(max(low, -1), abs=1e-9)
    assert estimate.high == pytest.approx(min(high, 1), abs=1e-9)


def test_weights_and_what_is_known_enter_as_price_and_bonett_say() -> None:
    p1, p2 = (20 + 1) / (24 + 2), (6 + 1) / (32 + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(0.6**2 * p1 * (1 - p1) / 26 + p2 * (1 - p2) / 34)

    estimate = contrast_interval((20, 24), (6, 32), (0.6, 1.0), 0.4, 0.7)

    assert estimate.value == pytest.approx(0.7 * (0.4 + 0.6 * 20 / 24 - 6 / 32), abs=1e-12)
    assert estimate.low == pytest.approx(0.7 * (0.4 + 0.6 * p1 - p2 - half), abs=1e-12)
    assert estimate.high == pytest.approx(0.7 * (0.4 + 0.6 * p1 - p2 + half), abs=1e-12)


@given(two_samples(), st.floats(0, 1), st.booleans(), st.floats(0, 1))
def test_the_interval_holds_the_estimate_and_nothing_impossible(
    samples: tuple[Draws, Draws], weight: float, succeeded: bool, scale: float
) -> None:
    value, low, high = contrast_interval(*samples, (weight, 1.0), (1 - weight) * succeeded, scale)

    assert -scale <= low <= value + 1e-12
    assert value - 1e-12 <= high <= scale


@pytest.mark.parametrize("weight", [1.0, 0.6, 0.05])
@pytest.mark.parametrize(("p1", "p2"), [(0.7, 0.4), (0.95, 0.6), (0.5, 0.1)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(weight: float, p1: float, p2: float) -> None:
    n1, n2, scale = 24, 24, 0.5
    known = 1 - weight
    truth = scale * (known + weight * p1 - p2)
    chances = np.outer(outcomes(n1, p1), outcomes(n2, p2))

    covered = 0.0
    for x1, x2 in itertools.product(range(n1 + 1), range(n2 + 1)):
        _, low, high = contrast_interval((x1, n1), (x2, n2), (weight, 1.0), known, scale)
        covered += float(chances[x1, x2]) * (low <= truth <= high)

    assert covered == pytest.approx(0.955, abs=0.03)


@pytest.mark.parametrize("scale", [-0.1, 1.1, math.nan])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"the scale must be in \[0, 1\]"):
        contrast_interval((1, 2), (1, 2), BOTH, 0.0, scale)
