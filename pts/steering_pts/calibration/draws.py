"""On which draws settings compete, and what is estimated from the first of them.

A vector for one kind of decision acts in few completions, and where it does not act nothing differs. So draws in which
a group's contexts occur come at least every other time, as long as there are any, and estimates weigh the two kinds by
how often they really occur (stratified sampling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steering_pts.calibration.log import Draw, Outcome
from steering_pts.data import Problem
from steering_pts.seeds import derive_seed


def halves(problems: Sequence[Problem], by: str, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The problems on which settings are chosen, and those on which the chosen one is confirmed.

    Every value of the field `by` is divided alike; the first half has the odd problem more.
    """
    order = sorted(problems, key=lambda p: (p.fields.get(by, ""), derive_seed(seed, p.id, "half"), p.id))
    return order[::2], order[1::2]


def draws_of(problems: Sequence[Problem], samples: int, seed: int) -> list[Draw]:
    """Every problem with every sample: all problems once, then all again."""
    order = sorted(problems, key=lambda p: (derive_seed(seed, p.id, "order"), p.id))
    return [Draw(problem.id, sample) for sample in range(samples) for problem in order]


class Strength(NamedTuple):
    """What an arm's first draws say of it.

    Attributes:
        lift: Mean difference to the unsteered arm.
        kl: Nats per counted token.
        kl_error: Standard error of that.
    """

    lift: float
    kl: float
    kl_error: float


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """Draws in the order in which settings are given them.

    Attributes:
        draws: All of them.
        acting: For each, whether the group's contexts occur in its unsteered completion.
    """

    draws: tuple[Draw, ...]
    acting: tuple[bool, ...]

    @classmethod
    def of(cls, draws: Sequence[Draw], acts: Mapping[Draw, bool]) -> DrawOrder:
        """At least every other draw acts, until none of them is left."""
        queues = {kind: [draw for draw in draws if acts[draw] is kind] for kind in (True, False)}
        places = {draw: place for place, draw in enumerate(draws)}
        order: list[Draw] = []
        while queues[True] or queues[False]:
            acting = 2 * sum(acts[draw] for draw in order)
            if not queues[True]:
                kind = False
            elif not queues[False] or acting <= len(order):
                kind = True
            else:  # in their natural order, so that what acts often is not held back
                kind = places[queues[True][0]] < places[queues[False][0]]
            order.append(queues[kind].pop(0))
        return cls(tuple(order), tuple(acts[draw] for draw in order))

    def estimate(self, arm: Sequence[Outcome], unsteered: Sequence[Outcome]) -> Strength:
        """Lift and divergence from the outcomes of the first draws, arm and unsteered alike."""
        count = len(arm)
        acting = np.array(self.acting[:count])
        share = sum(self.acting) / len(self.acting)
        strata = [(acting, share), (~acting, 1 - share)]
        present = [(mask, weight) for mask, weight in strata if mask.any()]
        scale = sum(weight for _, weight in present)
        weighted = [(mask, weight / scale) for mask, weight in present] if scale else [(acting | True, 1.0)]
        solved = np.array([float(one.solved) for one in arm])
        base = np.array([float(one.solved) for one in unsteered])
        kl = np.array([one.kl for one in arm])
        steps = np.array([float(one.steps) for one in arm])
        lift = _mean(solved - base, weighted)
        tokens = _mean(steps, weighted)
        if not np.isfinite(kl).all():
            return Strength(lift, math.inf, 0.0)
        if tokens == 0:
            return Strength(lift, 0.0, 0.0)
        ratio = _mean(kl, weighted) / tokens
        return Strength(lift, ratio, _error(kl - ratio * steps, weighted) / tokens)


def _mean(values: NDArray[np.float64], strata: Sequence[tuple[NDArray[np.bool_], float]]) -> float:
    return math.fsum(weight * float(values[mask].mean()) for mask, weight in strata)


def _error(values: NDArray[np.float64], strata: Sequence[tuple[NDArray[np.bool_], float]]) -> float:
    """Standard error of the stratified mean; a stratum with one draw adds nothing, for nothing is known of it."""
    return math.sqrt(
        math.fsum(
            weight**2 * float(values[mask].var(ddof=1)) / int(mask.sum())
            for mask, weight in strata
            if mask.sum() > 1
        )
    )
