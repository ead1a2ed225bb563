"""The full grid beside the search: how near the chosen settings come to the best that there is.

The grid chooses on the same problems as the search, each setting on all of them. Its best few are then measured on the
problems kept for confirming, like the chosen one, and the best there stands for the grid. That favours the grid, so the
gap is told rather too large than too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.draws import DrawOrder
from steering_pts.calibration.log import Draw, Outcome
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.results import GridComparison, GroupGrid, GroupResult
from steering_pts.calibration.settings import Setting, settings_of
from steering_pts.calibration.trials import UNSTEERED, Arm, Trials

CONTENDERS: Final = 5
"""Settings of the grid that are measured again: chance alone makes one the best of a hundred."""


def contenders_of(
    group: CandidateGroup, trials: Trials, options: CalibrationOptions, draws: Sequence[Draw]
) -> list[Setting]:
    """The settings that are best when all are measured on the same draws, within the budget of divergence."""
    settings = settings_of(group, options)
    unsteered, *grid = trials.measure(
        [(UNSTEERED, draws), *((Arm((one,)), draws) for one in settings)], f"{group.name}: the full grid"
    )
    order = DrawOrder(tuple(draws), (True,) * len(draws))
    strengths = [order.estimate(outcomes, unsteered) for outcomes in grid]
    within = [place for place, one in enumerate(strengths) if one.kl <= options.kl_budget]
    best = sorted(within, key=lambda place: (-strengths[place].lift, strengths[place].kl))
    return [settings[place] for place in best[:CONTENDERS]]


def compare_group(
    name: str, contenders: Sequence[Setting], chosen: Setting | None, trials: Trials, draws: Sequence[Draw]
) -> GroupGrid:
    """The best of the contenders and the chosen setting on draws that neither was chosen on.

    Where nothing was chosen, or the grid has nothing within the budget, the unsteered arm stands for it.
    """
    arms = [UNSTEERED if chosen is None else Arm((chosen,)), UNSTEERED, *(Arm((one,)) for one in contenders)]
    measured = trials.measure([(arm, draws) for arm in arms], f"{name}: the best of the grid")
    of_chosen, unsteered, *of_contenders = map(success, measured)
    best = max(range(len(contenders)), key=of_contenders.__getitem__, default=None)
    return GroupGrid(
        name,
        unsteered=unsteered,
        chosen=of_chosen,
        best=None if best is None else contenders[best],
        best_of_grid=unsteered if best is None else of_contenders[best],
    )


def compare_with_grid(
    groups: Sequence[CandidateGroup],
    results: Sequence[GroupResult],
    trials: Trials,
    options: CalibrationOptions,
    choosing: Sequence[Draw],
    confirming: Sequence[Draw],
) -> GridComparison:
    """Measures the full grid of every group, and what its best settings do together beside those that were chosen.

    Args:
        groups: The candidates.
        results: What the search made of them, in the same order.
        trials: Measures.
        options: What competes.
        choosing: Draws that the grid chooses on.
        confirming: Draws that the chosen settings were confirmed on.
    """
    compared = [
        compare_group(
            group.name, contenders_of(group, trials, options, choosing), one.chosen, trials, confirming
        )
        for group, one in zip(groups, results, strict=True)
    ]
    chosen = tuple(one.chosen for one in results if one.kept and one.chosen is not None)
    best = tuple(grid.best for grid, one in zip(compared, results, strict=True) if one.kept and grid.best)
    left = [grid.best for grid, one in zip(compared, results, strict=True) if not one.kept and grid.best]

    def together(settings: tuple[Setting, ...]) -> float:
        (outcomes,) = trials.measure([(Arm(settings), confirming)], "together: the best of the grid")
        return success(outcomes)

    rate = together(best)
    # A group that the search left out is no loss unless its best setting adds something to the others.
    for setting in left:
        if (more := together((*best, setting))) > rate:
            best, rate = (*best, setting), more
    return GridComparison(tuple(compared), chosen=together(chosen), best_of_grid=rate)


def success(outcomes: Sequence[Outcome]) -> float:
    """The share of draws that were solved."""
    return sum(one.solved for one in outcomes) / len(outcomes)
