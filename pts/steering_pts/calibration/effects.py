"""What an arm did against the unsteered one: lift with its interval, in all and by value of a field."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from steering_engine.vectors.schema import HeldOutLift
from steering_pts.calibration.log import Draw, Outcome
from steering_pts.calibration.results import Effect
from steering_pts.data import Problem
from steering_pts.statistics import paired_bootstrap_lift

_LEVEL = 0.95


def effect_of(
    draws: Sequence[Draw],
    unsteered: Sequence[Outcome],
    arm: Sequence[Outcome],
    problems: Mapping[str, Problem],
    by: str,
    split: str,
    seed: int,
) -> Effect:
    """The effect of an arm on draws.

    Args:
        draws: What both were measured on.
        unsteered: Outcomes of the unsteered arm.
        arm: Outcomes of the arm.
        problems: By id.
        by: Field whose values are told apart; empty for none.
        split: What the problems are called.
        seed: Of the bootstrap.
    """
    values: dict[str, list[int]] = defaultdict(list)
    if by:
        for index, draw in enumerate(draws):
            values[problems[draw.problem_id].fields[by]].append(index)
    kl, steps = math.fsum(one.kl for one in arm), sum(one.steps for one in arm)
    return Effect(
        lift=_lift(range(len(draws)), draws, unsteered, arm, split, seed),
        samples=len(draws) // len({draw.problem_id for draw in draws}),
        kl=(kl / steps if steps else 0.0) if math.isfinite(kl) else None,
        steered_steps=sum(one.steered for one in arm) / len(arm),
        by={
            value: _lift(rows, draws, unsteered, arm, f"{split}, {by} = {value}", seed)
            for value, rows in sorted(values.items())
            if len({draws[row].problem_id for row in rows}) > 1
        },
    )


def _lift(
    rows: Sequence[int],
    draws: Sequence[Draw],
    unsteered: Sequence[Outcome],
    arm: Sequence[Outcome],
    split: str,
    seed: int,
) -> HeldOutLift:
    differences: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        differences[draws[row].problem_id].append(float(arm[row].solved) - float(unsteered[row].solved))
    lift = paired_bootstrap_lift(differences, seed=seed, level=_LEVEL)
    return HeldOutLift(
        split=split,
        problems=len(differences),
        unsteered=sum(unsteered[row].solved for row in rows) / len(rows),
        steered=sum(arm[row].solved for row in rows) / len(rows),
        lift=lift.value,
        low95=lift.low,
        high95=lift.high,
    )


def harmed(
    draws: Sequence[Draw],
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    problems: Mapping[str, Problem],
    by: str,
    seed: int,
) -> list[str]:
    """The values of a field whose problems are certainly solved less often after than before.

    Certainly: the bootstrap interval over problems is below 0, at a level corrected for the number of values
    (Bonferroni).
    """
    if not by:
        return []
    differences: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for draw, left, right in zip(draws, before, after, strict=True):
        value = problems[draw.problem_id].fields[by]
        differences[value][draw.problem_id].append(float(right.solved) - float(left.solved))
    level = 1 - (1 - _LEVEL) / len(differences)
    return [
        value
        for value, own in sorted(differences.items())
        if len(own) > 1 and paired_bootstrap_lift(own, seed=seed, level=level).high < 0
    ]
