"""The statistics of an evaluation. The problem is the unit everywhere: completions of one problem are alike."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from steering_pts.statistics import Estimate, paired_bootstrap_lift

_RESAMPLES: Final = 9_999
_RESAMPLES_AT_ONCE: Final = 1_000


def clustered_mean(values: Sequence[Sequence[float]], seed: int) -> Estimate:
    """The mean over problems of each problem's mean, with a 95 % bootstrap interval that resamples whole problems.

    Args:
        values: Of each problem, those of its completions; at least two problems.
        seed: Of the resampling.
    """
    return paired_bootstrap_lift({f"{index:09}": of_one for index, of_one in enumerate(values)}, seed)


def paired_differences(
    baseline: Sequence[Sequence[bool]], arm: Sequence[Sequence[bool]]
) -> list[list[float]]:
    """For each problem, what the arm's completions change: those of the same seed are compared.

    Where one side has more completions of a problem, the others of it have no pair and are left out.
    """
    return [
        [float(right) - float(left) for left, right in zip(before, after, strict=False)]
        for before, after in zip(baseline, arm, strict=True)
    ]


def exact_mean(differences: Sequence[Sequence[float]]) -> float:
    """The mean over problems of each problem's mean, in fractions: equal ones are equal, however they come about.

    Thirds added up in another order differ in their last digit, and a comparison of means would hang on it.

    Args:
        differences: Of each problem, as `paired_differences` gives them.
    """
    return float(sum(Fraction(sum(own)) / len(own) for own in differences) / len(differences))


def sign_flip_p(differences: Sequence[Sequence[float]], seed: int) -> float:
    """Two-sided p-value of no difference, by flipping the sign of whole problems' mean differences.

    Under the hypothesis the two arms of a problem are exchangeable, all of its completions together. Exact where there
    are few problems; else 9,999 random flips, and the p-value counts what was observed as one of them.

    Args:
        differences: Of each problem, as `paired_differences` gives them; at least two problems.
        seed: Of the flips.
    """
    if exact_mean(differences) == 0:
        return 1.0  # no flip is nearer to 0
    means = np.array([np.mean(of_one) for of_one in differences])
    zero = np.zeros_like(means)

    def mean_difference(first: NDArray[Any], second: NDArray[Any], axis: int) -> NDArray[Any]:
        difference: NDArray[Any] = np.mean(first - second, axis=axis)
        return difference

    result = stats.permutation_test(
        (means, zero),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def random_direction_p(observed: float, random: Sequence[float]) -> float:
    """P-value of a lift against those of random directions: (1 + how many reach it) / (1 + how many there are).

    Args:
        observed: The lift.
        random: Lifts of random directions, measured on the same problems with the same seeds.
    """
    return (1 + sum(one >= observed for one in random)) / (1 + len(random))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all of them together (S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70)."""
    if not p_values:
        return []
    corrected: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return corrected
