"""The statistics of pivotal token search: pure functions on counts and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

_EDGE = 1e-12
_DRAWN_AT_ONCE = 1 << 20  # problems of resamples: 16 MiB, where all of a data set of 14,000 would take 2 GiB


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


Draws = tuple[int, int]
"""Successes among draws."""


def contrast_p(first: Draws, second: Draws, weights: tuple[float, float], margin: float) -> float:
    """One-sided p-value of w1 p1 - w2 p2 <= margin, by the score test; where one weight is 0, by the binomial test.

    z = (w1 x1/n1 - w2 x2/n2 - margin) / sqrt(w1^2 q1 (1 - q1)/n1 + w2^2 q2 (1 - q2)/n2), where (q1, q2) maximise the
    likelihood among all pairs with w1 q1 - w2 q2 = margin; p = P(Normal(0, 1) >= z). With both weights 1 it is the
    test of C. P. Farrington and G. Manning, "Test statistics and sample size formulae for comparative binomial trials
    with null hypothesis of non-zero risk difference or non-unity relative risk", Statistics in Medicine 9 (1990).
    Of one rate alone the same score is too bold where draws are few, and the exact test costs nothing.

    Ours, because statsmodels has it for differences only, and its `score_test_proportions_2indep` doesn't maximise
    that likelihood for a margin other than 0 (https://github.com/statsmodels/statsmodels/issues/10269).

    Args:
        first: Successes and draws of the side that should be better.
        second: Those of the other side.
        weights: In [0, 1]; a side with weight 0 needs no draws.
        margin: What has to be exceeded; from the first weight on nothing can exceed it, and p is 1.

    Returns:
        p in [0, 1].

    Raises:
        ValueError: A count outside 0..n, a side of positive weight without draws, a weight outside [0, 1], or a
            margin that nothing can fall short of.
    """
    (x1, n1), (x2, n2), (w1, w2) = first, second, weights
    _check_weighted(first, w1)
    _check_weighted(second, w2)
    if not margin >= -w2:
        raise ValueError(f"a margin of {margin} is exceeded whatever is drawn; expected at least {-w2}")
    if margin >= w1:
        return 1.0
    if w2 == 0:
        return float(stats.binom.sf(x1 - 1, n1, max(margin / w1, 0.0)))
    if w1 == 0:
        return float(stats.binom.cdf(x2, n2, min(-margin / w2, 1.0)))
    q1, q2 = _constrained_rates(first, second, weights, margin)
    variance = w1**2 * q1 * (1 - q1) / n1 + w2**2 * q2 * (1 - q2) / n2
    excess = w1 * (x1 / n1) - w2 * (x2 / n2) - margin
    if (
        variance <= 0
    ):  # the null leaves only sure events: what was drawn is one (z = 0/0), or can't be under it
        return 0.5 if excess <= _EDGE else 0.0
    return float(special.ndtr(-excess / math.sqrt(variance)))


def contrast_interval(
    first: Draws,
    second: Draws,
    weights: tuple[float, float],
    known: float,
    scale: float,
    *,
    level: float = 0.95,
) -> Estimate:
    """The estimate scale * (known + w1 p1 - w2 p2), with Price and Bonett's interval.

    The interval adds one success and one failure to each side, so it is not centred on the estimate; with both
    weights 1 it is Agresti and Caffo's. It is cut to [-scale, scale], outside which nothing can lie. R. M. Price and
    D. G. Bonett, "An improved confidence interval for a linear function of binomial proportions", Computational
    Statistics & Data Analysis 45 (2004), 449-456.

    Args:
        first: Successes and draws of the first side.
        second: Those of the second side.
        weights: In [0, 1]; a side with weight 0 needs no draws.
        known: What is added without error.
        scale: A known factor in [0, 1]; for a token of probability pi, 1 - pi turns the contrast V - A into the
            token's effect.
        level: Coverage, in (0, 1).

    Raises:
        ValueError: A count outside 0..n, a side of positive weight without draws, or a weight, scale or level out of
            range.
    """
    _check_level(level)
    if not 0 <= scale <= 1:
        raise ValueError(f"the scale must be in [0, 1], not {scale}")
    value = middle = known
    variance = 0.0
    for (x, n), weight, sign in ((first, weights[0], 1), (second, weights[1], -1)):
        _check_weighted((x, n), weight)
        if weight > 0:
            shrunk = (x + 1) / (n + 2)
            value += sign * weight * x / n
            middle += sign * weight * shrunk
            variance += weight**2 * shrunk * (1 - shrunk) / (n + 2)
    reach = float(special.ndtri((1 + level) / 2)) * math.sqrt(variance)
    low, high = max(middle - reach, -1.0), min(middle + reach, 1.0)
    return Estimate(scale * value, scale * low, scale * high)


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
    generator = np.random.default_rng(seed)
    resampled = np.empty(resamples)
    at_once = max(1, _DRAWN_AT_ONCE // len(means))
    for start in range(0, resamples, at_once):
        part = resampled[start : start + at_once]
        part[:] = means[generator.integers(len(means), size=(len(part), len(means)))].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
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


def _constrained_rates(
    first: Draws, second: Draws, weights: tuple[float, float], margin: float
) -> tuple[float, float]:
    """The likeliest (q1, q2) with w1 q1 - w2 q2 = margin, both in [0, 1].

    Along that line the log-likelihood is concave, so its maximum is where the derivative changes its sign.
    """
    (x1, n1), (x2, n2), (w1, w2) = first, second, weights
    low, high = max(0.0, -margin / w2), min(1.0, (w1 - margin) / w2)

    def first_rate(q2: float) -> float:
        return min(max((margin + w2 * q2) / w1, 0.0), 1.0)

    def slope(q2: float) -> float:
        q1 = min(max(first_rate(q2), _EDGE), 1 - _EDGE)
        q2 = min(max(q2, _EDGE), 1 - _EDGE)
        return (w2 / w1) * (x1 - n1 * q1) / (q1 * (1 - q1)) + (x2 - n2 * q2) / (q2 * (1 - q2))

    if slope(low) <= 0:
        q2 = low
    elif slope(high) >= 0:
        q2 = high
    else:
        q2 = float(optimize.brentq(slope, low, high, xtol=1e-13))
    return first_rate(q2), q2


def _check_weighted(draws: Draws, weight: float) -> None:
    successes, count = draws
    if not 0 <= weight <= 1:
        raise ValueError(f"a weight must be in [0, 1], not {weight}")
    if not 0 <= successes <= count or (count < 1 and weight > 0):
        raise ValueError(f"{successes} successes among {count} draws can't be")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level must be in (0, 1), not {level}")
