"""The arms and the groups as pictures, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.figures import ArmFigures, Figures, GroupFigures
from steering_pts.evaluation.report import title
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
    shown = [arm for arm in figures.arms if arm.kind is not ArmKind.RANDOM]
    random = [arm for arm in figures.arms if arm.kind is ArmKind.RANDOM]
    rows = len(shown) + bool(random)

    def draw(axes: Axes) -> None:
        for row, arm in enumerate(shown):
            low, value, high = arm.success.low, arm.success.value, arm.success.high
            axes.errorbar(
                value,
                row,
                xerr=[[value - low], [high - value]],
                fmt=_marker(arm),
                color=_colour(arm),
                capsize=3,
            )
            axes.annotate(
                f"{value:.3f}", (high, row), (6, 0), textcoords="offset points", va="center", size=8
            )
        labels = [title(arm) for arm in shown]
        if random:
            values = [arm.success.value for arm in random]
            axes.plot(values, [len(shown)] * len(values), "|", color=_PLAIN, markersize=12)
            labels.append(f"{len(random)} random, same norm")
        unsteered = shown[0].success.value
        axes.axvline(unsteered, color=_PLAIN, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(rows), labels)
        axes.set_xlabel("success, with its 95 % interval over problems")

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
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)

    return _figure(len(groups), draw)


def _figure(rows: int, draw: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(_WIDTH_INCHES, 1.2 + _ROW_INCHES * rows), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlim(-0.02, 1.08)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def _marker(arm: ArmFigures) -> str:
    return {ArmKind.UNSTEERED: "s", ArmKind.STEERED: "o"}.get(arm.kind, "D")


def _colour(arm: ArmFigures) -> str:
    return {ArmKind.UNSTEERED: _PLAIN, ArmKind.STEERED: _STEERED}.get(arm.kind, _OTHER)
