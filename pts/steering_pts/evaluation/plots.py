"""The arms and the groups as pictures, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.figures import Figures, GroupFigures
from steering_pts.evaluation.table import title
from steering_pts.ledger.export import replacing

# Of Okabe and Ito's palette, which colour-blind people tell apart.
_STEERED: Final = "#0072B2"
_PLAIN: Final = "#555555"
_OTHER: Final = "#D55E00"
_ROW_INCHES: Final = 0.36
_WIDTH_INCHES: Final = 7.0
_FORMATS: Final = ("svg", "png")


def write_plots(figures: Figures, folder: Path) -> list[Path]:
    """Writes the plots, and says which files they are.

    Raises:
        LedgerError: A file can't be written.
    """
    written = _write(folder / "arms", _arms_figure(figures))
    for field, groups in figures.by_group.items():
        # A field's name may hold anything; a file's name may not.
        safe = "".join(char if char.isalnum() or char in "-_" else "_" for char in field)
        written += _write(folder / f"by-{safe}", _groups_figure(field, groups))
    return written


def _write(stem: Path, figure: Figure) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in _FORMATS]
    for path, suffix in zip(paths, _FORMATS, strict=True):
        with replacing(path) as place:
            # Without a date, equal figures are equal files.
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(place, format=suffix, dpi=150, metadata=metadata)
    return paths


def _arms_figure(figures: Figures) -> Figure:
    arms = {arm.name: arm for arm in figures.arms}
    random = figures.random
    rows = len(figures.lifts) + (random is not None)

    def draw(axes: Axes) -> None:
        for row, lift in enumerate(figures.lifts):
            low, value, high = lift.lift.low, lift.lift.value, lift.lift.high
            arm = arms[lift.arm]
            axes.errorbar(
                value,
                row,
                xerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],  # rounding must not turn it round
                fmt="o" if arm.kind is ArmKind.STEERED else "D",
                color=_STEERED if arm.kind is ArmKind.STEERED else _OTHER,
                capsize=3,
            )
            axes.annotate(
                f"{value:+.3f}", (high, row), (6, 0), textcoords="offset points", va="center", size=8
            )
        labels = [title(arms[lift.arm]) for lift in figures.lifts]
        if random is not None:
            axes.plot(random.lifts, [rows - 1] * random.vectors, "|", color=_PLAIN, markersize=12)
            labels.append(f"{random.vectors} random, same norm")
        axes.axvline(0, color=_PLAIN, linewidth=0.8)
        axes.margins(x=0.12)  # room for the numbers beside the intervals
        axes.set_yticks(range(rows), labels)
        unsteered = figures.arms[0].success.value
        axes.set_xlabel(
            f"change of the success rate (unsteered: {unsteered:.3f}), 95 % interval over problems"
        )

    return _figure(rows, draw)


def _groups_figure(field: str, groups: dict[str, GroupFigures]) -> Figure:
    def draw(axes: Axes) -> None:
        for row, group in enumerate(groups.values()):
            axes.plot([group.unsteered, group.steered], [row, row], color="#BBBBBB", linewidth=2, zorder=1)
        rows = range(len(groups))
        axes.plot([one.unsteered for one in groups.values()], rows, "s", color=_PLAIN, label="unsteered")
        axes.plot([one.steered for one in groups.values()], rows, "o", color=_STEERED, label="steered")
        axes.set_yticks(rows, [f"{value or '(none)'} ({one.n})" for value, one in groups.items()])
        axes.set_xlabel(f"success by {field} (problems)")
        axes.set_xlim(-0.02, 1.02)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)

    return _figure(len(groups), draw)


def _figure(rows: int, draw: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(_WIDTH_INCHES, 1.2 + _ROW_INCHES * rows), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure
