"""The decision variance of a step from rollouts of its branches, with its uncertainty.

D = sum over tokens t of pi_t (V_t - V)^2, V = sum of pi_t V_t (see `branches`). The pi_t are known, the V_t are rates
of success of which some draws were made. A step is pivotal where D >= tau^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

JEFFREYS = 0.5
"""Successes and failures that a rate is given before any draw: its Jeffreys prior."""

_EDGE = 1e-3  # a rate that was never seen to be otherwise is not therefore exactly 0 or 1
_MOST_OTHERS = 64
_ROUNDS = 50
_MOST_DRAWS = 1e4  # as which something counts that is known without any


def decision_variance(probabilities: Array, values: Array) -> Array:
    """D for each row of rates of success.

    Args:
        probabilities: `[branches]`, which add up to 1.
        values: `[rows, branches]` in [0, 1].

    Returns:
        `[rows]`.
    """
    spread = values - (values @ probabilities)[:, None]
    return np.square(spread) @ probabilities


def variance_draws(
    probabilities: Sequence[float],
    draws: Sequence[tuple[float, float]],
    rest: float,
    generator: np.random.Generator,
    count: int,
    prior: float = JEFFREYS,
) -> Array:
    """Draws of D from its posterior, every token's rate being unknown by itself: Beta(prior + successes, …).

    All other tokens are taken to be as likely as the least likely of those looked at, 64 at most.

    Args:
        probabilities: `[branches]` of the tokens that were looked at.
        draws: `[branches]` successes and failures of each, none for a branch that was not drawn.
        rest: Probability of all other tokens, of which nothing is known.
        generator: Source of randomness.
        count: How many draws.
        prior: Successes and failures that are added to each branch's.

    Returns:
        `[count]`.
    """
    others = min(math.ceil(rest / min(probabilities)), _MOST_OTHERS)
    pi = np.array([*probabilities, *[rest / max(others, 1)] * others])
    counts = np.array([*draws, *[(0.0, 0.0)] * others]) + prior
    # Beta(1, 1), which most branches have, is uniform: drawn as such, it costs little.
    uniform = (counts == 1).all(axis=1)
    values = np.empty((count, len(pi)))
    values[:, uniform] = generator.random((count, int(uniform.sum())))
    a, b = counts[~uniform].T
    values[:, ~uniform] = generator.beta(a, b, size=(count, len(a)))
    return decision_variance(pi / pi.sum(), values)


class Evidence(NamedTuple):
    """What draws say of a step.

    Attributes:
        log_odds: By how much they raise the log-odds that it matters what comes there.
        large: P(D >= tau^2) if it does.
        undrawn: Probability of the tokens that were never drawn.
    """

    log_odds: float
    large: float
    undrawn: float

    def pivotal(self, rho: float) -> float:
        """P(D >= tau^2), where it matters at a share `rho` of such steps."""
        return float(special.expit(self.log_odds + special.logit(rho))) * self.large


def evidence(
    probabilities: Sequence[float],
    draws: Sequence[tuple[float, float]],
    rest: float,
    tau: float,
    generator: np.random.Generator,
    count: int = 2_000,
) -> Evidence:
    """Weighs two explanations of a step's draws, the two of the search's prior.

    Either it does not matter what comes: all branches have one rate, and D = 0. Or each branch has a rate of its own.
    Rates are uniform a priori, so that the evidence of either is a product of Beta functions.

    Args:
        probabilities: `[branches]`.
        draws: `[branches]` successes and failures; fractions are allowed, for what is known of a branch indirectly.
        rest: Probability of all other tokens, of which nothing is known.
        tau: Root of the least variance of a pivotal step.
        generator: Source of randomness.
        count: How many draws of D.
    """
    counts = np.array(draws, dtype=np.float64).reshape(-1, 2)
    apart = special.betaln(counts[:, 0] + 1, counts[:, 1] + 1).sum()
    together = special.betaln(counts[:, 0].sum() + 1, counts[:, 1].sum() + 1)
    draws_of_d = variance_draws(probabilities, draws, rest, generator, count, prior=1.0)
    drawn = float(np.array(probabilities) @ (counts.sum(axis=1) > 0))
    large = float((draws_of_d >= tau**2).mean())
    return Evidence(float(apart - together), large, max(sum(probabilities) + rest - drawn, 0.0))


def learned_share(log_odds: Sequence[float], rho: float, weight: float) -> float:
    """The share of steps at which it matters what comes, as all steps of a run together suggest it.

    Expectation-maximisation of a mixture of two known parts.

    Args:
        log_odds: `[steps]` what each step's draws say.
        rho: The share before anything was drawn.
        weight: Steps that it counts for.

    Returns:
        In (0, 1).
    """
    odds, share = np.array(log_odds, dtype=np.float64), rho
    for _ in range(_ROUNDS):
        matters = special.expit(odds + special.logit(share))
        share = float((matters.sum() + weight * rho) / (len(odds) + weight))
    return share


def as_counts(mean: float, variance: float) -> tuple[float, float]:
    """Successes and failures that leave a uniform prior with this mean and variance of a rate, as near as counts can.

    Args:
        mean: In [0, 1].
        variance: Below `mean (1 - mean)`; one as wide as the uniform prior's or wider counts nothing.
    """
    bounded = min(max(mean, _EDGE), 1 - _EDGE)
    draws = min(bounded * (1 - bounded) / max(variance, _EDGE**2) - 1, _MOST_DRAWS)
    return max(bounded * draws - 1, 0.0), max((1 - bounded) * draws - 1, 0.0)
