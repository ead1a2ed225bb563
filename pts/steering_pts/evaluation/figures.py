"""The figures of an evaluation: each arm, what it changes, and what chance would have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from steering_pts.data import Problem
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.measuring import STEERED, MeasuredArm, Measurement
from steering_pts.evaluation.statistics import (
    clustered_mean,
    exact_mean,
    holm,
    paired_differences,
    random_direction_p,
    sign_flip_p,
)
from steering_pts.oracles.base import Verdict
from steering_pts.statistics import Estimate

_MOST_GROUPS: Final = 50


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """What an arm's completions are like.

    Attributes:
        name: The arm.
        kind: What it is there for.
        n: Completions.
        success: Share that is correct, with its 95 % interval over problems; what is censored is not correct.
        censored: Completions without a verdict: cut off, or the oracle failed.
        truncated: Completions that were cut off.
        broken: Completions that steering left nothing to sample for.
        tokens_mean: Mean length in tokens.
        repetition: Mean share of 4-grams that stood in the completion before.
        steered_steps_mean: Mean number of steps at which something was done.
    """

    name: str
    kind: ArmKind
    n: int
    success: Estimate
    censored: int
    truncated: int
    broken: int
    tokens_mean: float
    repetition: float
    steered_steps_mean: float


@dataclass(frozen=True, slots=True)
class Lift:
    """What an arm changes against the unsteered one, completions of the same problem and seed compared.

    Attributes:
        arm: The arm.
        lift: Difference of the success rates with its 95 % interval over problems.
        p: Of no difference, two-sided, by flipping the signs of problems.
        holm_p: The same, corrected for all vectors that were measured alone; None for the other arms.
    """

    arm: str
    lift: Estimate
    p: float
    holm_p: float | None


@dataclass(frozen=True, slots=True)
class RandomFigures:
    """What random directions do in the place of the vectors.

    Attributes:
        vectors: How many there were.
        lift: Their mean lift, with its 95 % interval over problems.
        lifts: The lift of each.
        p: P-value of the vectors' lift among theirs, measured on the same completions.
    """

    vectors: int
    lift: Estimate
    lifts: tuple[float, ...]
    p: float


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Success on the problems with one value of a field; `lift` is None where there is but one problem."""

    n: int
    unsteered: float
    steered: float
    lift: Estimate | None


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it.

    Attributes:
        arms: Every arm.
        lifts: Of every arm but the unsteered one and the random ones.
        random: Of the random ones together; None without them.
        by_group: By field, then by its value.
        different_at_strength_0: Completions at strength 0 that are not those of the unsteered arm, and how many were
            compared; None without that arm.
    """

    arms: tuple[ArmFigures, ...]
    lifts: tuple[Lift, ...]
    random: RandomFigures | None
    by_group: dict[str, dict[str, GroupFigures]]
    different_at_strength_0: tuple[int, int] | None

    def arm(self, name: str) -> ArmFigures | None:
        """The figures of an arm."""
        return next((one for one in self.arms if one.name == name), None)

    def lift(self, name: str) -> Lift | None:
        """What an arm changes."""
        return next((one for one in self.lifts if one.arm == name), None)


def figures_of(measurement: Measurement, by: Sequence[str], seed: int) -> Figures:
    """The figures of a measurement.

    Args:
        measurement: At least two problems.
        by: Fields of the problems; see `check_fields`.
        seed: Of the bootstrap and of the permutations.
    """
    baseline = measurement.unsteered.solved
    return Figures(
        arms=tuple(_arm(arm, seed) for arm in measurement.arms),
        lifts=_lifts(measurement, seed),
        random=_random(measurement, seed),
        by_group={
            field: _groups(measurement.problems, baseline, measurement.steered.solved, field, seed)
            for field in by
        },
        different_at_strength_0=_different(measurement),
    )


def check_fields(problems: Sequence[Problem], by: Sequence[str]) -> None:
    """Makes sure that problems can be told apart by these fields.

    Raises:
        EvaluationError: No problem has a field, or it has too many values; all such fields at once.
    """
    faults = []
    for field in by:
        values = {problem.fields[field] for problem in problems if field in problem.fields}
        if not values:
            known = sorted({name for problem in problems for name in problem.fields})
            faults.append(f"no problem has the field {field!r}; they have {', '.join(known) or 'none'}")
        elif len(values) > _MOST_GROUPS:
            faults.append(
                f"the field {field!r} has {len(values)} values, the first {min(values)!r:.40}; "
                f"expected at most {_MOST_GROUPS}"
            )
    if faults:
        raise EvaluationError("; ".join(faults))


def _arm(measured: MeasuredArm, seed: int) -> ArmFigures:
    samples = measured.flat()
    verdicts = [verdict for own in measured.verdicts for verdict in own]
    return ArmFigures(
        name=measured.arm.name,
        kind=measured.arm.kind,
        n=len(samples),
        success=clustered_mean(measured.solved, seed),
        censored=sum(verdict is Verdict.CENSORED for verdict in verdicts),
        truncated=sum(sample.truncated for sample in samples),
        broken=sum(sample.broken for sample in samples),
        tokens_mean=float(np.mean([len(sample.ids) for sample in samples])),
        repetition=float(np.mean([sample.repetition for sample in samples])),
        steered_steps_mean=float(np.mean([len(sample.steered_steps) for sample in samples])),
    )


def _lifts(measurement: Measurement, seed: int) -> tuple[Lift, ...]:
    baseline = measurement.unsteered.solved
    lifts = []
    for measured in measurement.arms[1:]:
        if measured.arm.kind is not ArmKind.RANDOM:
            differences = paired_differences(baseline, measured.solved)
            lifts.append(
                Lift(
                    measured.arm.name, clustered_mean(differences, seed), sign_flip_p(differences, seed), None
                )
            )
    alone = [lift for lift in lifts if lift.arm.startswith(f"{STEERED}: ")]
    corrected = dict(zip([lift.arm for lift in alone], holm([lift.p for lift in alone]), strict=True))
    return tuple(Lift(one.arm, one.lift, one.p, corrected.get(one.arm)) for one in lifts)


def _random(measurement: Measurement, seed: int) -> RandomFigures | None:
    arms = measurement.of_kind(ArmKind.RANDOM)
    if not arms:
        return None
    baseline = measurement.unsteered.solved
    differences = [paired_differences(baseline, arm.solved) for arm in arms]
    together = [
        [change for own in of_problem for change in own] for of_problem in zip(*differences, strict=True)
    ]
    lifts = [exact_mean(one) for one in differences]
    # The vectors' lift is taken from as many completions as a random one's, so that chance is alike on both sides.
    count = arms[0].arm.samples
    observed = exact_mean(paired_differences(baseline, [own[:count] for own in measurement.steered.solved]))
    return RandomFigures(
        len(arms), clustered_mean(together, seed), tuple(lifts), random_direction_p(observed, lifts)
    )


def _groups(
    problems: Sequence[Problem],
    unsteered: Sequence[Sequence[bool]],
    steered: Sequence[Sequence[bool]],
    field: str,
    seed: int,
) -> dict[str, GroupFigures]:
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(problem.fields.get(field, ""), []).append(index)
    found = {}
    for value, members in sorted(groups.items()):
        before, after = [unsteered[i] for i in members], [steered[i] for i in members]
        lift = clustered_mean(paired_differences(before, after), seed) if len(members) > 1 else None
        found[value] = GroupFigures(len(members), _rate(before), _rate(after), lift)
    return found


def _rate(solved: Sequence[Sequence[bool]]) -> float:
    return float(np.mean([one for own in solved for one in own]))


def _different(measurement: Measurement) -> tuple[int, int] | None:
    arms = measurement.of_kind(ArmKind.STRENGTH_0)
    if not arms:
        return None
    pairs = [
        (plain.ids, off.ids)
        for before, after in zip(measurement.unsteered.samples, arms[0].samples, strict=True)
        for plain, off in zip(before, after, strict=False)
    ]
    return sum(plain != off for plain, off in pairs), len(pairs)
