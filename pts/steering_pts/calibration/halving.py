"""Successive halving: all settings on few draws, the best of them on more, until one is left.

After Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits" (ICML 2013), with three changes:
what a setting was measured on is kept and only added to, since all share the same draws; a setting that certainly
diverges too far from the unsteered model goes at once; and of equals the one that diverges less goes on, then the
weaker one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from steering_pts.calibration.draws import DrawOrder, Strength
from steering_pts.calibration.log import Draw, Outcome
from steering_pts.calibration.settings import Setting

KEEP: Final = 0.5
GROWTH: Final = 2
_LEAST_DRAWS: Final = 4
_CERTAIN: Final = 2.0  # standard errors
_SHARES_OF_BUDGET = 20

Measure = Callable[[Sequence[Setting | None], Sequence[Draw], str], list[list[Outcome]]]
"""Outcomes of settings on the same draws, None being the unsteered arm; the text says which round it is."""


class Round(NamedTuple):
    """One round of a schedule: how many settings take part, and on how many draws each has been then."""

    settings: int
    draws: int


def schedule(count: int, most_draws: int, budget: int) -> list[Round]:
    """The rounds for so many settings: half go on each time, on twice as many draws.

    Args:
        count: Settings.
        most_draws: Draws that there are.
        budget: Most measurements in all. Where it is too small for 4 draws in the first round, that round has 4 all the
            same, and the later ones fewer; what the first alone exceeds is exceeded.
    """

    def rounds(first: int, most: int) -> list[Round]:
        plan = [Round(count, first)]
        while plan[-1].settings > 1 and plan[-1].draws < most:
            fewer = max(math.ceil(plan[-1].settings * KEEP), 1)
            if fewer == 1:
                break
            plan.append(Round(fewer, min(plan[-1].draws * GROWTH, most)))
        return plan

    least = min(_LEAST_DRAWS, most_draws)
    plans = [rounds(first, most_draws) for first in range(most_draws, least - 1, -1)]
    plans += [rounds(least, most) for most in range(most_draws - 1, least - 1, -1)]
    return next((plan for plan in plans if cost(plan) <= budget), plans[-1])


def cost(rounds: Sequence[Round]) -> int:
    """Measurements of a schedule; what a setting was measured on before is not measured again."""
    before = 0
    total = 0
    for one in rounds:
        total += one.settings * (one.draws - before)
        before = one.draws
    return total


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a setting.

    Attributes:
        setting: The setting.
        draws: Draws that it was measured on.
        solved: How many of them it solved.
        strength: What they say of it.
        rounds: Rounds that it took part in.
    """

    setting: Setting
    draws: int
    solved: int
    strength: Strength
    rounds: int


@dataclass(frozen=True, slots=True)
class Search:
    """A finished search.

    Attributes:
        standings: Of every setting, in their order.
        rounds: The rounds as they were.
        finalists: Indices of the settings of the last round that are within the budget of divergence, best first.
        measured: Measurements in all.
    """

    standings: tuple[Standing, ...]
    rounds: tuple[Round, ...]
    finalists: tuple[int, ...]
    measured: int


def halve(
    settings: Sequence[Setting],
    order: DrawOrder,
    rounds: Sequence[Round],
    kl_budget: float,
    measure: Measure,
) -> Search:
    """Searches for the setting with the largest lift within the budget of divergence.

    Args:
        settings: What competes, at least one.
        order: The draws.
        rounds: From `schedule`.
        kl_budget: Nats per counted token.
        measure: Measures settings on draws.
    """
    alive = list(range(len(settings)))
    outcomes: dict[int, list[Outcome]] = {index: [] for index in alive}
    unsteered: list[Outcome] = []
    standings: dict[int, Standing] = {}
    done: list[Round] = []
    measured = 0
    for number, planned in enumerate(rounds, start=1):
        fresh = order.draws[len(unsteered) : planned.draws]
        arms = [None, *(settings[index] for index in alive)]
        base, *of_settings = measure(arms, fresh, f"round {number} of {len(rounds)}")
        unsteered += base
        measured += len(alive) * len(fresh)
        done.append(Round(len(alive), planned.draws))
        for index, more in zip(alive, of_settings, strict=True):
            own = outcomes[index]
            own += more
            standings[index] = Standing(
                settings[index], len(own), sum(o.solved for o in own), order.estimate(own, unsteered), number
            )
        # What diverges too far for certain goes; of the rest, so many go on as the next round has room for.
        alive = [index for index in alive if not _certainly_diverges(standings[index].strength, kl_budget)]
        alive.sort(key=lambda index: _rank(standings[index], kl_budget))
        if number < len(rounds):
            alive = _best(alive, rounds[number].settings, standings, kl_budget)
        if not alive:
            break
    within = [index for index in alive if standings[index].strength.kl <= kl_budget]
    ordered = tuple(standings[index] for index in range(len(settings)))
    return Search(ordered, tuple(done), tuple(within), measured)


def _rank(standing: Standing, kl_budget: float) -> tuple[float, float, float]:
    # Less than a twentieth of the budget is as good as nothing: else of two equals the last block, behind which nothing
    # is left to diverge, would win with any strength.
    divergence = standing.strength.kl * _SHARES_OF_BUDGET / kl_budget
    whole = math.floor(divergence) if math.isfinite(divergence) else math.inf
    return -standing.strength.lift, whole, standing.setting.relative


def _certainly_diverges(strength: Strength, kl_budget: float) -> bool:
    return strength.kl - _CERTAIN * strength.kl_error > kl_budget


def _best(ranked: Sequence[int], count: int, standings: dict[int, Standing], kl_budget: float) -> list[int]:
    """The first ones; if all of these seem to diverge too far, the best that does not takes the last one's place."""
    best = list(ranked[:count])
    if all(standings[index].strength.kl > kl_budget for index in best):
        rest = [index for index in ranked[count:] if standings[index].strength.kl <= kl_budget]
        best[-1:] = rest[:1] or best[-1:]
    return best
