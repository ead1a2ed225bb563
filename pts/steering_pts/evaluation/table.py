"""What an evaluation tells people: the tables that are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.figures import ArmFigures, Figures, GroupFigures, RandomFigures
from steering_pts.evaluation.measuring import STEERED, UNSTEERED
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.statistics import Estimate

_TITLES: Final = {
    ArmKind.STRENGTH_0: "strength 0",
    ArmKind.FLIPPED: "the other way",
    ArmKind.SHUFFLED_STEPS: "as many other steps",
    ArmKind.FORCED_ALTERNATIVE: "better token forced",
    ArmKind.EVERY_STEP: "at every step",
}


def title(figures: ArmFigures) -> str:
    """An arm as people read it."""
    return _TITLES.get(figures.kind, figures.name)


def print_report(report: EvaluationReport, files: Sequence[Path]) -> None:
    """Prints the table of arms, the groups, and what should be known."""
    console = Console(highlight=False)
    measurement, figures = report.measurement, report.figures
    names = ", ".join(f"{one.name} ({one.trigger_name})" for one in report.vectors)
    console.print(
        f"{report.model} on {len(measurement.problems)} problems of {report.dataset}, "
        f"{report.settings.samples} completion{'s' * (report.settings.samples != 1)} each: {names}"
    )
    console.print(_arms_table(figures))
    console.print(_effects_table(figures))
    for field, groups in figures.by_group.items():
        console.print(_groups_table(field, groups))
    for line in _lines(report):
        console.print(Text(line))
    for remark in report.remarks:
        console.print(Text(remark, style="dim"))
    for path in files:
        console.print(Text(f"written: {path}", style="dim"))


def _arms_table(figures: Figures) -> Table:
    table = _table("success by arm", "arm", ("success (95 %)", "lift (95 %)", "p"))
    for arm in figures.arms:
        if arm.kind is not ArmKind.RANDOM:
            lift = figures.lift(arm.name)
            table.add_row(
                Text(title(arm)),
                _interval(arm.success, ""),
                "" if lift is None else _interval(lift.lift, "+"),
                "" if lift is None else f"{lift.p:.4f}",
                style="bold" if arm.name == STEERED else None,
            )
    if (random := figures.random) is not None:
        arms = _random_arms(figures)
        mean = fmean(arm.success.value for arm in arms)
        table.add_row(_random_title(random), f"{mean:.3f}", _interval(random.lift, "+"), "")
    return table


def _effects_table(figures: Figures) -> Table:
    columns = ("n", "steered", "tokens", "cut off", "censored", "repeated")
    table = _table("completions, and steered steps and tokens of one", "arm", columns)
    for arm in figures.arms:
        if arm.kind is not ArmKind.RANDOM:
            table.add_row(Text(title(arm)), *_effects_cells([arm]))
    if (random := figures.random) is not None:
        table.add_row(_random_title(random), *_effects_cells(_random_arms(figures)))
    return table


def _effects_cells(arms: Sequence[ArmFigures]) -> tuple[str, ...]:
    return (
        f"{sum(arm.n for arm in arms):,}",
        f"{fmean(arm.steered_steps_mean for arm in arms):.2f}",
        f"{fmean(arm.tokens_mean for arm in arms):.1f}",
        f"{sum(arm.truncated for arm in arms):,}",
        f"{sum(arm.censored for arm in arms):,}",
        f"{fmean(arm.repetition for arm in arms):.3f}",
    )


def _random_arms(figures: Figures) -> list[ArmFigures]:
    return [arm for arm in figures.arms if arm.kind is ArmKind.RANDOM]


def _random_title(random: RandomFigures) -> str:
    return f"{random.vectors} random, same norm"


def _table(name: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _groups_table(field: str, groups: dict[str, GroupFigures]) -> Table:
    table = _table(f"by {field}", field, ("problems", UNSTEERED, STEERED, "lift (95 %)"))
    for value, group in groups.items():
        table.add_row(
            Text(value or "(none)"),
            f"{group.n:,}",
            f"{group.unsteered:.3f}",
            f"{group.steered:.3f}",
            "" if group.lift is None else _interval(group.lift, "+"),
        )
    return table


def _lines(report: EvaluationReport) -> list[str]:
    lines = [
        f"{lift.arm}: p = {lift.holm_p:.4f} with Holm's correction for all vectors measured alone"
        for lift in report.figures.lifts
        if lift.holm_p is not None
    ]
    random = report.figures.random
    if random is not None:
        lines.append(
            f"random directions: best lift {max(random.lifts):+.3f}; among theirs the vectors' lift has "
            f"p = {random.p:.3f}"
        )
    if report.effects is not None:
        for what, found in (
            ("steps that are not steered", report.effects.unsteered_steps),
            ("a neutral text", report.effects.neutral_text),
        ):
            if found is not None:
                lines.append(
                    f"KL per token over {what}: mean {found.mean:.2g}, 95 % quantile {found.p95:.2g} nats"
                )
    different = report.figures.different_at_strength_0
    if different is not None:
        count, compared = different
        lines.append(
            f"strength 0: all {compared:,} completions are the unsteered ones, token for token"
            if count == 0
            else f"strength 0: {count:,} of {compared:,} completions are NOT the unsteered ones; where a server's "
            "results depend on its batches (a GPU), rounding may do that, else it is an error"
        )
    if report.measurement.oracle_failures:
        lines.append(f"oracle failures: {report.measurement.oracle_failures:,} completions, censored")
    return lines


def _interval(estimate: Estimate, sign: str) -> str:
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.2f} … {estimate.high:{sign}.2f})"
