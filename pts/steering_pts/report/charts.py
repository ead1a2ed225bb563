"""The charts of a whole run: the effects of its pivots, and the success of evaluated arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steering_pts.ledger import PivotRecord
from steering_pts.report.curves_chart import style_axes
from steering_pts.report.palette import STAND_INS
from steering_pts.report.svg import NARROW, chart
from steering_pts.report.texts import label as label_text

_MOST_BARS: Final = 60
_MOST_POINTS: Final = 200
_ROW: Final = 30
_NARROW_ROW: Final = 44


@dataclass(frozen=True, slots=True)
class ArmRow:
    """A row of the arms' chart: one arm, or several alike ones whose single successes are dots.

    Attributes:
        name: Its label.
        success: Its success rate, the mean of several.
        low: Lower end of its interval; the least of several.
        high: Upper end; the most of several.
        dots: The single success rates of several.
        is_main: Whether it is what the evaluation is about.
    """

    name: str
    success: float
    low: float
    high: float
    dots: tuple[float, ...] = ()
    is_main: bool = False


def effects_chart(pivots: Sequence[PivotRecord]) -> Markup:
    """The effects of all pivots, from the most harmful to the most helpful, with their intervals."""
    ordered = sorted(pivots, key=lambda pivot: pivot.delta)
    if len(ordered) > _MOST_POINTS:
        step = (len(ordered) - 1) / (_MOST_POINTS - 1)
        ordered = [ordered[round(i * step)] for i in range(_MOST_POINTS)]
    delta, low, high = (
        np.array([getattr(pivot, name) for pivot in ordered]) for name in ("delta", "low", "high")
    )
    share = (np.arange(len(ordered)) + 0.5) / len(ordered) * len(pivots)
    heights = (220, 200)

    def draw(figure: Figure, width: int) -> None:
        height = heights[width <= NARROW]
        left, right, bottom, top = 42 / width, 12 / width, 40 / height, 10 / height
        axes = figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top))
        style_axes(axes)
        axes.set_xlim(0, len(pivots))
        reach = max(float(np.abs([low, high]).max()), 0.25) * 1.05
        axes.set_ylim(-reach, reach)
        axes.axhline(0, color=STAND_INS["muted"], linewidth=1)
        axes.grid(visible=True, axis="y", color=STAND_INS["grid"], linewidth=1)
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{value:+.1f}".replace("-", "\u2212") if value else "0"
        )
        axes.set_xticks([])
        axes.set_xlabel(_counted(len(pivots), "pivot") + ", ordered by effect", color=STAND_INS["muted"])
        for colour, shape, which in (("bad", "v", delta < 0), ("good", "^", delta >= 0)):
            if not which.any():
                continue
            if len(ordered) <= _MOST_BARS:
                axes.vlines(
                    share[which], low[which], high[which], color=STAND_INS[f"{colour}-soft"], linewidth=4
                )
            else:
                axes.fill_between(
                    share[which], low[which], high[which], color=STAND_INS[f"{colour}-soft"], linewidth=0
                )
            size = 7 if len(ordered) <= _MOST_BARS else 3
            axes.plot(
                share[which],
                delta[which],
                marker=shape,
                markersize=size,
                color=STAND_INS[colour],
                markeredgewidth=0,
                linestyle="none",
            )

    harmful = sum(pivot.delta < 0 for pivot in pivots)
    text = (
        f"Effects of {_counted(len(pivots), 'pivot')} on P(success) with their 95 % intervals, "
        f"from {delta.min():+.2f} to {delta.max():+.2f}: {harmful} harm, {len(pivots) - harmful} help"
    )
    return chart("effects", text, heights, draw)


def arms_chart(rows: Sequence[ArmRow], unsteered: float | None) -> Markup:
    """Success rates with their intervals, a row for each arm; a dashed line at the unsteered one's."""
    heights = (_ROW * len(rows) + 52, _NARROW_ROW * len(rows) + 48)

    def draw(figure: Figure, width: int) -> None:
        is_narrow = width <= NARROW
        height = heights[is_narrow]
        left = (12 if is_narrow else 224) / width
        bottom, top = 36 / height, 8 / height
        axes = figure.add_axes((left, bottom, 1 - left - 16 / width, 1 - bottom - top))
        style_axes(axes)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.4, -0.7 if is_narrow else -0.6)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        axes.set_yticks([])
        axes.grid(visible=True, axis="x", color=STAND_INS["grid"], linewidth=1)
        axes.set_xlabel("success", color=STAND_INS["muted"])
        if unsteered is not None:
            axes.axvline(unsteered, color=STAND_INS["muted"], linewidth=1.5, linestyle=(0, (4, 3)))
        for place, row in enumerate(rows):
            _draw_arm(axes, place, row, is_narrow=is_narrow)

    said = "; ".join(f"{row.name} {row.success:.3f} ({row.low:.3f} to {row.high:.3f})" for row in rows)
    return chart("arms", f"Success of every arm with its interval: {said}", heights, draw)


def _draw_arm(axes: Axes, place: int, row: ArmRow, *, is_narrow: bool) -> None:
    colour = STAND_INS["good" if row.is_main else "curve"]
    if row.dots:
        axes.plot(
            row.dots,
            [place] * len(row.dots),
            marker="|",
            markersize=11,
            color=colour,
            linestyle="none",
            clip_on=False,
        )
    else:
        axes.hlines(place, row.low, row.high, color=colour, linewidth=3, capstyle="round", clip_on=False)
    axes.plot(
        row.success,
        place,
        marker="D" if row.is_main else "o",
        markersize=8,
        color=colour,
        linestyle="none",
        clip_on=False,
    )
    text = f"{label_text(row.name, 28)}  {row.success:.3f}"
    axes.annotate(
        text,
        (0, place),
        xytext=(0, 13) if is_narrow else (-10, 0),
        textcoords="offset points",
        ha="left" if is_narrow else "right",
        va="center",
        color=STAND_INS["ink"],
        fontweight="bold" if row.is_main else "normal",
        annotation_clip=False,
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
