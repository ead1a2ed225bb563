"""What all rollouts of a completion say about its value curve: a hidden-Markov model, solved exactly on a grid.

The hidden state is V, the probability of success after each step; the last one is the completion's own verdict. Going
back over a step of probability P, V_before = P V_after + (1 - P) A. The prior says that most steps change next to
nothing: Delta = V_after - V_before ~ (1 - rho) Normal(0, sd^2) + rho Uniform for candidates, where A would leave
[0, 1] nothing. A draw that leaves the completion at a step succeeds with that step's A. Forward-backward over the
steps then gives every step's joint posterior of (V_before, V_after), in which all draws take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from steering_pts.search.trace import Step

Array = NDArray[np.float64]

_POINTS: Final = 61
_GRID: Final = np.linspace(0.0, 1.0, _POINTS)
_SPACING: Final = 1.0 / (_POINTS - 1)
_DELTA: Final = _GRID[None, :] - _GRID[:, None]  # [before, after]
_IMPOSSIBLE: Final = 1e-12
_LEAST_RATE: Final = 1e-3  # no A is exactly 0 or 1: one draw must not rule a curve out for good


@dataclass(frozen=True, slots=True)
class StepPrior:
    """How effects of candidates are distributed: `rho` is the share of any size, `sd` the size of the others."""

    rho: float = 0.1
    sd: float = 0.04


@dataclass(frozen=True, slots=True)
class Posterior:
    """The posterior of a completion's candidates, in their order; each field is `[candidates]`.

    Attributes:
        positive: P(effect >= tau).
        negative: P(effect <= -tau).
        effect: Mean of the effect.
        effect_sd: Its standard deviation.
        value: Mean of V after the candidate.
        value_variance: Its variance.
        alternative: Mean of A.
        alternative_variance: Its variance.
    """

    positive: Array
    negative: Array
    effect: Array
    effect_sd: Array
    value: Array
    value_variance: Array
    alternative: Array
    alternative_variance: Array

    @property
    def pivotal(self) -> Array:
        """P(|effect| >= tau)."""
        return np.minimum(self.positive + self.negative, 1.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """P(success) along a completion, as far as all draws together tell; each array is `[steps + 1]`.

    Attributes:
        positions: How many of the completion's tokens stand before each value: 0, and the ends of the steps.
        mean: Posterior mean of V.
        low: Lower end of its credible interval, a point of the grid.
        high: Upper end.
    """

    positions: tuple[int, ...]
    mean: Array
    low: Array
    high: Array


class ValueChain:
    """The model of one completion: `add` draws, ask for the `posterior`."""

    def __init__(self, steps: Sequence[Step], *, succeeded: bool, tau: float, prior: StepPrior) -> None:
        self.steps = tuple(steps)
        self.candidates = np.flatnonzero([step.is_candidate for step in steps])
        self.draws = np.zeros((len(steps), 3), dtype=np.int64)  # successes, failures, censored
        self._probability = np.array([step.probability for step in steps])
        self._is_candidate = np.array([step.is_candidate for step in steps], dtype=bool)
        self._moments = _moments(tau)
        self._prior = prior
        self._end = np.zeros(_POINTS)
        self._end[-1 if succeeded else 0] = 1.0
        lengths = np.array([step.end - step.start for step in steps], dtype=np.int64)
        self._step_of = np.repeat(np.arange(len(steps)), lengths)
        self._factors: Array | None = None
        self._stale = np.ones(len(steps), dtype=bool)

    def add(self, position: int, kind: int) -> None:
        """A draw that left the completion at a position; `kind` is 0 for success, 1 for failure, 2 for censored."""
        step = self._step_of[position]
        self.draws[step, kind] += 1
        self._stale[step] = True

    def set_draws(self, step: int, draws: NDArray[np.int64]) -> None:
        """Puts other draws `[3]` in the place of a step's: to ask what all others say, for one."""
        self.draws[step] = draws
        self._stale[step] = True

    def step_at(self, position: int) -> Step:
        """The step that a position belongs to."""
        return self.steps[int(self._step_of[position])]

    def set_prior(self, prior: StepPrior) -> None:
        """Another prior for the effects of candidates."""
        if prior != self._prior:
            self._prior = prior
            self._stale[:] = True

    def release(self) -> None:
        """Frees what is only kept to make the next posterior quicker (30 kB for each step)."""
        self._factors = None
        self._stale[:] = True

    def posterior(self) -> Posterior:
        """What is known of every candidate."""
        joint = self._joint()
        moments = joint.reshape(len(joint), -1) @ self._moments
        positive, negative, before, after, before2, product, after2 = moments.T
        # A is linear in (before, after), so its moments follow from theirs.
        p = self._probability[self.candidates]
        rest = np.maximum(1 - p, 1e-6)
        alternative = (before - p * after) / rest
        alternative2 = (before2 - 2 * p * product + p**2 * after2) / rest**2
        effect = after - before
        return Posterior(
            positive=positive,
            negative=negative,
            effect=effect,
            effect_sd=np.sqrt(np.maximum(before2 - 2 * product + after2 - effect**2, 0.0)),
            value=after,
            value_variance=np.maximum(after2 - after**2, 0.0),
            alternative=np.clip(alternative, _LEAST_RATE, 1 - _LEAST_RATE),
            alternative_variance=np.maximum(alternative2 - alternative**2, 0.0),
        )

    def curve(self, level: float = 0.95) -> Curve:
        """P(success) before the first step and after each one.

        Args:
            level: Probability that an interval holds.
        """
        forward, backward = self._messages(self._updated_factors())
        marginals = forward * backward
        marginals /= marginals.sum(axis=1, keepdims=True)
        sums = marginals.cumsum(axis=1)
        tail = (1 - level) / 2
        # The sum of all may fall short of 1 by rounding, so of a bound that none reaches the last point is taken.
        low, high = (
            _GRID[np.minimum((sums < bound - 1e-12).sum(axis=1), _POINTS - 1)] for bound in (tail, 1 - tail)
        )
        positions = (0, *(step.end for step in self.steps))
        return Curve(positions, marginals @ _GRID, low, high)

    def prior_evidence(self, which: NDArray[np.bool_]) -> tuple[float, float]:
        """How many effects seem to be of the prior's any-size part, and the summed squares of the others.

        `which` of the candidates count, `[candidates]`.
        """
        joint = self._joint()[which]
        large = np.minimum(self._prior.rho / _POINTS / np.exp(self._log_prior(self.candidates[which])), 1.0)
        return float((joint * large).sum()), float((joint * (1 - large) * _DELTA**2).sum())

    def _joint(self) -> Array:
        """Posterior of (before, after) for every candidate, by forward-backward: `[candidates, before, after]`."""
        factors = self._updated_factors()
        forward, backward = self._messages(factors)
        chosen = self.candidates
        joint = forward[chosen][:, :, None] * factors[chosen]
        joint *= backward[chosen + 1][:, None, :]
        joint /= joint.sum(axis=(1, 2), keepdims=True)
        return joint

    def _messages(self, factors: Array) -> tuple[Array, Array]:
        """What the draws before and after each value say of it, up to a constant factor: `[steps + 1, values]` each."""
        count = len(self.steps)
        backward = np.empty((count + 1, _POINTS))
        backward[count] = self._end
        for step in range(count - 1, -1, -1):
            message = factors[step] @ backward[step + 1]
            backward[step] = message / message.sum()
        forward = np.empty((count + 1, _POINTS))
        forward[0] = 1.0 / _POINTS
        for step in range(count):
            message = forward[step] @ factors[step]
            forward[step + 1] = message / message.sum()
        return forward, backward

    def _updated_factors(self) -> Array:
        """Prior times likelihood of each step, up to a constant factor, `[steps, before, after]`."""
        if self._factors is None:
            self._factors = np.empty((len(self.steps), _POINTS, _POINTS))
        stale = np.flatnonzero(self._stale)
        if len(stale):
            rate = _rate(self._probability[stale])
            logs = self._log_prior(stale) + _log_likelihood(self.draws[stale], rate)
            self._factors[stale] = np.exp(logs - logs.max(axis=(1, 2), keepdims=True))
            self._stale[:] = False
        return self._factors

    def _log_prior(self, steps: NDArray[np.intp]) -> Array:
        """Log-prior of (before, after) given a uniform before, `[steps, before, after]`."""
        probability = self._probability[steps][:, None, None]
        is_candidate = self._is_candidate[steps][:, None, None]
        # A merged run of likely tokens moves V by at most 1 - P; the grid can't resolve less than half its spacing.
        sd = np.where(is_candidate, self._prior.sd, np.maximum(0.25 * (1 - probability), _SPACING / 2))
        rho = np.where(is_candidate, self._prior.rho, 0.0)
        density = (1 - rho) * np.exp(-0.5 * (_DELTA / sd) ** 2) / (sd / _SPACING * np.sqrt(2 * np.pi))
        density = density + rho / _POINTS
        raw = _raw_rate(self._probability[steps])
        # Between two points of the grid, A may seem to lie outside [0, 1] by what half a spacing of V makes of it.
        # A hair more, or rounding would decide on the bound, and not alike for success and failure.
        slack = _SPACING / 2 / np.maximum(1 - probability, 0.02) + 1e-9
        return np.asarray(np.log(np.where((raw < -slack) | (raw > 1 + slack), _IMPOSSIBLE, density)))


@lru_cache(maxsize=8)
def _moments(tau: float) -> Array:
    """What a joint posterior is summed with to give its tails beyond tau and its moments, `[pairs, 7]`."""
    before, after = np.broadcast_arrays(_GRID[:, None], _GRID[None, :])
    parts = (
        tau - 1e-9 <= _DELTA,
        1e-9 - tau >= _DELTA,
        before,
        after,
        before**2,
        before * after,
        after**2,
    )
    return np.stack([part.astype(np.float64).ravel() for part in parts], axis=1)


def _raw_rate(probability: Array) -> Array:
    """A from V_before = P V_after + (1 - P) A, `[steps, before, after]`."""
    p = probability[:, None, None]
    return np.asarray((_GRID[None, :, None] - p * _GRID[None, None, :]) / np.maximum(1 - p, 1e-6))


def _rate(probability: Array) -> Array:
    return np.clip(_raw_rate(probability), _LEAST_RATE, 1 - _LEAST_RATE)


def _log_likelihood(draws: NDArray[np.int64], rate: Array) -> Array:
    """Log-likelihood of draws `[steps, 3]` at rates `[steps, before, after]`.

    Censored draws are bounds: any number of them may hide a success, all numbers being equally likely beforehand.
    """
    log_rate, log_rest = np.log(rate), np.log1p(-rate)
    successes, failures = draws[:, 0, None, None], draws[:, 1, None, None]
    logs = successes * log_rate + failures * log_rest
    for step in np.flatnonzero(draws[:, 2]):
        s, f, censored = map(int, draws[step])
        hidden = np.arange(censored + 1)[:, None, None]
        terms = (s + hidden) * log_rate[step] + (f + censored - hidden) * log_rest[step]
        logs[step] = special.logsumexp(
            terms - special.betaln(s + hidden + 1, f + censored - hidden + 1), axis=0
        )
    return np.asarray(logs)
