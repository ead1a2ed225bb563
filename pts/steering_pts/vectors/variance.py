"""The decision variance of a step from rollouts of its branches, with its uncertainty.

D = sum over tokens t of pi_t (V_t - V)^2, V = sum of pi_t V_t (see `branches`). The pi_t are known, the V_t are rates
of success of which some draws were made. A step is pivotal where D >= tau^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JEFFREYS = 0.5
"""Successes and failures that a rate is given before any draw: its Jeffreys prior."""


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
    """Draws of D from its posterior, every branch's rate being unknown by itself: Beta(prior + successes, …).

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
    pi = np.array([*probabilities, rest])
    counts = np.array([*draws, (0.0, 0.0)]) + prior
    values = generator.beta(counts[:, 0], counts[:, 1], size=(count, len(pi)))
    return decision_variance(pi / pi.sum(), values)
