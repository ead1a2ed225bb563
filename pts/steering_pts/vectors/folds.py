"""Problem by problem: which steps are held out together, and from which score on a trigger fires."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from steering_pts.seeds import derive_seed

Fitted = TypeVar("Fitted")

FOLDS = 4
_SURE_SHARE = 0.95  # of the wanted steps, those that should stay clear of the threshold


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The steps of which it is known whether they are wanted.

    Attributes:
        rows: Their indices.
        wanted: Whether they are.
        problem_ids: Their problems.
    """

    rows: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    problem_ids: tuple[str, ...]


def known_steps(targets: Sequence[bool | None], problem_ids: Sequence[str]) -> Known | None:
    """The known ones; None where there is nothing to learn: two problems need a wanted step, and two another."""
    rows = [index for index, target in enumerate(targets) if target is not None]
    wanted = np.array([bool(targets[row]) for row in rows], dtype=np.bool_)
    problems = tuple(problem_ids[row] for row in rows)
    for value in (True, False):
        if len({problem for problem, own in zip(problems, wanted, strict=True) if own == value}) < 2:
            return None
    return Known(np.array(rows, dtype=np.int64), wanted, problems)


def fit_each_block(
    states: Mapping[int, torch.Tensor],
    targets: Sequence[bool | None],
    problem_ids: Sequence[str],
    fit: Callable[[NDArray[np.float64], Known], Fitted],
) -> dict[int, Fitted]:
    """What is fitted to the known steps at each block; nothing where there is nothing to learn (`known_steps`).

    Args:
        states: `[steps, hidden]` float32 by block.
        targets: `[steps]` whether a step is wanted; None where that is unknown, and the step is left out.
        problem_ids: `[steps]` the problem of each: steps of one problem are alike, so they stay together.
        fit: Fits to the states of the known steps, `[known, hidden]`.
    """
    known = known_steps(targets, problem_ids)
    if known is None:
        return {}
    return {
        block: fit(tensor[known.rows].double().numpy(), known) for block, tensor in sorted(states.items())
    }


def problem_folds(known: Known) -> list[NDArray[np.bool_]]:
    """Which steps each fold holds out, `[folds][steps]`: every step once, all of a problem together.

    Problems with wanted steps are dealt out evenly, and so are those with others; there are as many folds as problems
    with wanted steps, four at most, and each fold's rest has both kinds.
    """
    with_wanted, with_others = (
        {p for p, wanted in zip(known.problem_ids, known.wanted, strict=True) if wanted == kind}
        for kind in (True, False)
    )
    # Those with both kinds in the middle: so the problems of either kind are dealt out one after the other, and where
    # there are two of them, two folds have some. By digest, so that it does not hang on the order of the data.
    order = sorted(
        with_wanted | with_others, key=lambda p: (p not in with_wanted, p in with_others, derive_seed(0, p))
    )
    count = min(FOLDS, len(with_wanted), len(order))
    fold_of = {problem: number % count for number, problem in enumerate(order)}
    own = np.array([fold_of[problem] for problem in known.problem_ids])
    return [own == fold for fold in range(count)]


def threshold_for(
    scores: NDArray[np.float64], wanted: NDArray[np.bool_], false_positive_rate: float
) -> float:
    """The score from which to fire: at most so often where it is not wanted, and no lower than need be.

    The least score that keeps the rate is one extreme; where 95 % of the wanted steps score higher still, the
    threshold is half-way to them, so that either side has room to move.

    Args:
        scores: `[steps]` of steps that the scorer was not fitted to.
        wanted: `[steps]`.
        false_positive_rate: In [0, 1).
    """
    others = np.sort(scores[~wanted])[::-1]
    # The first that must not fire; above it, the threshold is the least double that it does not reach.
    allowed = min(int(false_positive_rate * len(others)), len(others) - 1)
    least = float(np.nextafter(others[allowed], np.inf))
    sure = float(np.quantile(scores[wanted], 1 - _SURE_SHARE))
    return (least + sure) / 2 if sure > least else least
