"""The evaluation as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from steering_pts.report.charts import ArmRow, arms_chart
from steering_pts.report.results import EvaluatedArm, Evaluation, Lift

_MOST_ROWS: Final = 24
_MOST_VALUES: Final = 40
_TITLES: Final = {
    "unsteered": "unsteered",
    "steered": "steered at pivots",
    "strength_0": "strength 0",
    "flipped": "opposite direction",
    "random": "random direction, same norm",
    "shuffled_steps": "as many other steps",
    "forced_alternative": "better token forced",
    "every_step": "at every step",
}


@dataclass(frozen=True, slots=True)
class NamedArm:
    """An arm with its label, and its lift over the unsteered one."""

    title: str
    arm: EvaluatedArm
    lift: Lift | None


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """Success by the value of a field, and how many values are not shown."""

    field: str
    rows: tuple[tuple[str, int, float, float], ...]
    more: int


@dataclass(frozen=True, slots=True)
class ShownEvaluation:
    """All that the page says of an evaluation; `main` is the arm that it is about, `more` counts arms not shown."""

    evaluation: Evaluation
    chart: Markup
    arms: tuple[NamedArm, ...]
    more: int
    random_arms: tuple[NamedArm, ...]
    more_random: int
    main: NamedArm | None
    groups: tuple[ShownGroup, ...]


def shown_evaluation(evaluation: Evaluation) -> ShownEvaluation:
    """An evaluation for the page: random vectors are one row, whatever their number."""
    lifts = {lift.arm: lift for lift in evaluation.lifts}
    kinds = [arm.kind for arm in evaluation.arms]

    def titled(arm: EvaluatedArm) -> NamedArm:
        known = _TITLES.get(arm.kind)
        # Two arms of one kind, single vectors say, are told apart by their names.
        title = known if known is not None and kinds.count(arm.kind) == 1 else arm.name
        return NamedArm(title, arm, lifts.get(arm.name))

    named = [titled(arm) for arm in evaluation.arms if arm.kind != "random"]
    random = [arm for arm in evaluation.arms if arm.kind == "random"]
    main = next((arm for arm in named if arm.arm.kind == "steered"), None)
    unsteered = next((arm.arm.success for arm in named if arm.arm.kind == "unsteered"), None)
    shown = named[:_MOST_ROWS]
    rows = [
        ArmRow(one.title, one.arm.success, one.arm.low, one.arm.high, is_main=one is main) for one in shown
    ]
    if random:
        rows.append(_random_row(random))
    return ShownEvaluation(
        evaluation=evaluation,
        chart=arms_chart(rows, unsteered),
        arms=tuple(shown),
        more=len(named) - len(shown),
        random_arms=tuple(titled(arm) for arm in random[:_MOST_VALUES]),
        more_random=max(len(random) - _MOST_VALUES, 0),
        main=main,
        groups=tuple(
            ShownGroup(
                field,
                tuple((name, v.n, v.unsteered, v.steered) for name, v in list(values.items())[:_MOST_VALUES]),
                max(len(values) - _MOST_VALUES, 0),
            )
            for field, values in list(evaluation.by_group.items())[:_MOST_ROWS]
        ),
    )


def _random_row(arms: Sequence[EvaluatedArm]) -> ArmRow:
    if len(arms) == 1:
        (arm,) = arms
        return ArmRow(_TITLES["random"], arm.success, arm.low, arm.high)
    successes = tuple(arm.success for arm in arms)
    mean = sum(successes) / len(successes)
    return ArmRow(f"{len(arms)} random directions", mean, min(successes), max(successes), successes[:200])
