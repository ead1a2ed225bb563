"""What `pts calibrate` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_engine.vectors.schema import HeldOutLift
from steering_pts.calibration.results import CalibrationResult, Effect, GridComparison


def print_calibration(result: CalibrationResult, written: Mapping[str, Path], *, as_json: bool) -> None:
    """The setting of each group and what it did, or why it gets no file."""
    if as_json:
        sys.stdout.write(json.dumps(calibration_values(result, written)) + "\n")
        return
    console = Console()
    console.print(_table(result))
    for group in result.groups:
        if group.reason:
            console.print(Text(f"left out: {group.name}: {group.reason}"))
    for group in result.groups:
        if group.rollouts > group.budget:
            console.print(
                Text(
                    f"{group.name}: {group.rollouts:,} rollouts, more than the {group.budget:,} that --share allows: "
                    "more validation problems, or fewer strengths and triggers, would keep it"
                )
            )
    for name, effect in (("together, on problems kept back", result.together), ("test", result.test)):
        if effect is not None:
            _print_effect(console, name, effect)
    if result.grid is not None:
        _print_grid(console, result.grid)
    if not written:
        console.print("no vector files: nothing helped for certain")


def calibration_values(result: CalibrationResult, written: Mapping[str, Path]) -> dict[str, Any]:
    """A calibration for programs."""
    return {**result.as_json(), "files": {name: str(path) for name, path in written.items()}}


def _table(result: CalibrationResult) -> Table:
    table = Table(title="calibration", title_justify="left")
    for name in ("group", "setting", "lift on problems kept back (95 %)", "KL/token", "rollouts"):
        table.add_column(name, overflow="fold")
    for group in result.groups:
        chosen, effect = group.chosen, group.effect
        label = Text(group.name, style="" if group.kept else "dim strike")
        spent = f"{group.rollouts:,} of {group.grid_rollouts:,}"
        if chosen is None or effect is None:
            table.add_row(label, "none", "", "", spent)
        else:
            table.add_row(label, str(chosen), _lift(effect.lift), _kl(effect), spent)
    return table


def _print_effect(console: Console, name: str, effect: Effect) -> None:
    lift = effect.lift
    console.print(
        Text(
            f"{name}: {lift.problems} problems x {effect.samples}: {lift.unsteered:.3f} -> {lift.steered:.3f}, "
            f"{_lift(lift)}; {effect.steered_steps:.2f} steered steps of a completion, {_kl(effect)} nats per token "
            "at the others"
        )
    )
    for value, own in effect.by.items():
        console.print(
            Text(
                f"  {value}: {own.problems} problems: {own.unsteered:.3f} -> {own.steered:.3f}, {_lift(own)}"
            )
        )


def _print_grid(console: Console, grid: GridComparison) -> None:
    for group in grid.groups:
        best = f"{group.best}" if group.best is not None else "nothing within the budget"
        console.print(
            Text(
                f"full grid: {group.name}: chosen {group.chosen:.3f}, best {group.best_of_grid:.3f} ({best}), "
                f"unsteered {group.unsteered:.3f}"
            )
        )
    console.print(
        Text(f"full grid, together: chosen {grid.chosen:.3f}, best of the grid {grid.best_of_grid:.3f}")
    )


def _lift(lift: HeldOutLift) -> str:
    return f"{lift.lift:+.3f} ({lift.low95:+.3f} … {lift.high95:+.3f})"


def _kl(effect: Effect) -> str:
    return "broken" if effect.kl is None else f"{effect.kl:.2g}"
