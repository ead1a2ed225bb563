"""The statistics of pivotal token search: pure functions on counts and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from statsmodels.stats.proportion import confint_proportions_2indep


class Estimate(NamedTuple):
    """A value with its confidence interval, low ≤ high, all in the value's own unit."""

    value: float
    low: float
    high: float


def beta_posterior_between(successes: int, failures: int, low: float, high: float) -> float:
    """P(low < rate < high | counts) under a uniform prior on the rate.

    The posterior is Beta(successes + 1, failures + 1).

    Raises:
        ValueError: a negative count, or not 0 ≤ low ≤ high ≤ 1.
    """
    if min(successes, failures) < 0:
        raise ValueError(f"counts can't be negative: {successes} successes, {failures} failures")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"need 0 <= low <= high <= 1, not {low} and {high}")
    below_low, below_high = special.betainc(successes + 1, failures + 1, [low, high])
    return float(below_high - below_low)


def score_test_p(x1: int, n1: int, x2: int, n2: int, margin: float) -> float:
    """One-sided p-value of p1 - p2 <= margin, by Farrington and Manning's score test.

    z = (x1/n1 - x2/n2 - margin) / sqrt(q1 (1 - q1)/n1 + q2 (1 - q2)/n2), where (q1, q2) maximise
    the likelihood among all pairs with q1 - q2 = margin; p = P(Normal(0, 1) >= z).
    C. P. Farrington and G. Manning, "Test statistics and sample size formulae for comparative
    binomial trials with null hypothesis of non-zero risk difference or non-unity relative risk",
    Statistics in Medicine 9 (1990), 1447-1454.

    Ours, because statsmodels' `score_test_proportions_2indep` doesn't maximise that likelihood for
    a margin other than 0 (https://github.com/statsmodels/statsmodels/issues/10269): for 20/24
    against 2/24 and a margin of 0.5 it gives 0.015 in place of 0.022, and NaN in corners.

    Args:
        x1: successes among the n1 draws of the arm that should be better.
        n1: draws of that arm.
        x2: successes among the n2 draws of the other arm.
        n2: draws of the other arm.
        margin: the difference that has to be exceeded, at least 0; from 1 on nothing can exceed
            it, and p is 1.

    Returns:
        p in [0, 1].

    Raises:
        ValueError: a count outside 0..n, no draws, or a negative margin.
    """
    _check_counts(x1, n1, x2, n2)
    if not margin >= 0:
        raise ValueError(f"the margin must be at least 0, not {margin}")
    if margin >= 1:
        return 1.0
    p1, p2 = x1 / n1, x2 / n2
    q1 = _constrained_rate(p1, n1, p2, n2, margin)
    q2 = q1 - margin
    variance = q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2
    if variance <= 0:  # only where margin is 0 and both arms always or never succeed: z = 0/0
        return 0.5
    return float(special.ndtr(-(p1 - p2 - margin) / math.sqrt(variance)))


def difference_interval(x1: int, n1: int, x2: int, n2: int, scale: float, *, level: float = 0.95) -> Estimate:
    """The estimate scale * (p1 - p2), with Agresti and Caffo's interval.

    The interval adds one success and one failure to each arm, so it is not centred on the
    estimate; it is cut to [-scale, scale], outside which nothing can lie. A. Agresti and B. Caffo,
    "Simple and effective confidence intervals for proportions and differences of proportions
    result from adding two successes and two failures", The American Statistician 54 (2000).

    Args:
        x1: successes among n1 draws.
        n1: draws of the first arm.
        x2: successes among n2 draws.
        n2: draws of the second arm.
        scale: a known factor in [0, 1]; for a token of probability pi, 1 - pi turns the contrast
            V_k - A_k into the token's effect.
        level: coverage, in (0, 1).

    Raises:
        ValueError: a count outside 0..n, no draws, or a scale or level out of range.
    """
    _check_counts(x1, n1, x2, n2)
    _check_level(level)
    if not 0 <= scale <= 1:
        raise ValueError(f"the scale must be in [0, 1], not {scale}")
    low, high = confint_proportions_2indep(
        x1, n1, x2, n2, method="agresti-caffo", compare="diff", alpha=1 - level
    )
    return Estimate(scale * (x1 / n1 - x2 / n2), scale * max(float(low), -1.0), scale * min(float(high), 1.0))


def benjamini_hochberg(
    p_values: Sequence[float], level: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which hypotheses to reject at false discovery rate `level`, and their q-values.

    Y. Benjamini and Y. Hochberg, Journal of the Royal Statistical Society B 57 (1995), 289-300.

    Returns:
        (reject, q), both `[len(p_values)]`; a hypothesis is rejected where q <= level.

    Raises:
        ValueError: a p-value outside [0, 1] or a level outside (0, 1).
    """
    _check_level(level)
    q_values = np.asarray(stats.false_discovery_control(np.asarray(p_values, dtype=np.float64)))
    return q_values <= level, q_values


def paired_bootstrap_lift(
    differences: Mapping[str, Sequence[float]],
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Estimate:
    """The mean lift with a percentile bootstrap interval that resamples whole problems.

    Rollouts of one problem are alike, so the problem is the unit: the lift is the mean over
    problems of each problem's mean difference, and every resample draws problems with replacement.

    Args:
        differences: per problem id, the paired differences (steered - unsteered) of its rollouts.
            Their order does not matter.
        seed: of the resampling.
        resamples: how many.
        level: coverage, in (0, 1).

    Raises:
        ValueError: fewer than two problems, a problem without differences, a number that is not
            finite, or a level out of range.
    """
    _check_level(level)
    if len(differences) < 2:
        raise ValueError(f"an interval needs at least two problems, not {len(differences)}")
    if empty := [problem for problem, values in differences.items() if len(values) == 0]:
        raise ValueError(f"no differences for problem {', '.join(sorted(empty))}")
    means = np.array([math.fsum(differences[p]) / len(differences[p]) for p in sorted(differences)])
    if not np.isfinite(means).all():
        raise ValueError("differences must be finite")
    draws = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    low, high = np.quantile(means[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(math.fsum(means) / len(means), float(low), float(high))


def paired_lift(
    problem_ids: Sequence[str], before: Sequence[bool], after: Sequence[bool], seed: int
) -> Estimate:
    """The lift of one completion per problem, before and after, with its bootstrap interval over problems."""
    differences = {
        problem: [float(right) - float(left)]
        for problem, left, right in zip(problem_ids, before, after, strict=True)
    }
    return paired_bootstrap_lift(differences, seed=seed)


def _constrained_rate(p1: float, n1: int, p2: float, n2: int, margin: float) -> float:
    """The likeliest q1 where q1 - q2 = margin: the middle root of a cubic, in [margin, 1].

    Equations and names of Farrington and Manning's appendix.
    """
    theta = n2 / n1
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + margin * (theta + 2))
    c = margin**2 + margin * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * margin * (1 + margin)
    v = (b / (3 * a)) ** 3 - b * c / (6 * a**2) + d / (2 * a)
    u = math.copysign(math.sqrt(max((b / (3 * a)) ** 2 - c / (3 * a), 0.0)), v)
    # Rounding can push the cosine out of [-1, 1], and u is 0 at a triple root.
    cosine = min(max(v / u**3, -1.0), 1.0) if abs(u) > 1e-9 else 0.0
    w = (math.pi + math.acos(cosine)) / 3
    return min(max(2 * u * math.cos(w) - b / (3 * a), margin), 1.0)


def _check_counts(x1: int, n1: int, x2: int, n2: int) -> None:
    for successes, draws in ((x1, n1), (x2, n2)):
        if draws < 1 or not 0 <= successes <= draws:
            raise ValueError(f"{successes} successes among {draws} draws can't be")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level must be in (0, 1), not {level}")
