"""The chart of P(success) along a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steering_pts.report.palette import STAND_INS
from steering_pts.report.svg import NARROW, chart
from steering_pts.search.chain import Curve

_MOST_POINTS: Final = 240
_MOST_NUMBERS: Final = 12
_HEIGHTS: Final = (190, 190)


@dataclass(frozen=True, slots=True)
class CurveMark:
    """A pivot on a curve: its number, where it begins and ends, and whether it helps."""

    number: int
    start: int
    end: int
    good: bool


def style_axes(axes: Axes) -> None:
    """Quiet axes: a line below, a light grid, no box."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(STAND_INS["line"])
    axes.tick_params(length=0, labelcolor=STAND_INS["muted"], pad=5)
    axes.set_axisbelow(True)


def curve_chart(name: str, curve: Curve, marks: Sequence[CurveMark]) -> Markup:
    """P(success) with its interval, and the pivots on it: up where they help, down where they harm."""
    kept = thinned(curve, marks)
    x = np.asarray(curve.positions, dtype=np.float64)[kept]
    mean, low, high = curve.mean[kept], curve.low[kept], curve.high[kept]

    def value(position: int) -> float:
        return float(curve.mean[np.searchsorted(curve.positions, position, side="right") - 1])

    def draw(figure: Figure, width: int) -> None:
        is_narrow = width <= NARROW
        height = _HEIGHTS[is_narrow]
        left, right, bottom, top = 34 / width, 12 / width, 40 / height, 12 / height
        axes = figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top))
        style_axes(axes)
        axes.set_xlim(0, max(float(curve.positions[-1]), 1.0))
        axes.set_ylim(-0.14, 1.14)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        axes.xaxis.set_major_locator(MaxNLocator(4 if is_narrow else 9, integer=True))
        axes.grid(visible=True, axis="y", color=STAND_INS["grid"], linewidth=1)
        axes.set_xlabel("token", color=STAND_INS["muted"])
        axes.fill_between(x, low, high, color=STAND_INS["band"], linewidth=0)
        axes.plot(x, mean, color=STAND_INS["curve"], linewidth=2, solid_joinstyle="round")
        for mark in marks:
            colour = STAND_INS["good" if mark.good else "bad"]
            before, after = value(mark.start), value(mark.end)
            axes.plot([mark.start, mark.end], [before, after], color=colour, linewidth=4, clip_on=False)
            shape = "^" if mark.good else "v"
            # The line comes from the other side, and the next one may go back there: the corner ahead is free.
            place = mark.end, min(max(after, 0.02), 0.98)
            axes.plot(*place, marker=shape, markersize=9, color=colour, linestyle="none", clip_on=False)
            if len(marks) <= _MOST_NUMBERS:
                is_first = mark.end < 0.04 * curve.positions[-1]
                axes.annotate(
                    str(mark.number),
                    place,
                    xytext=(9 if is_first else -9, 8 if mark.good else -8),
                    textcoords="offset points",
                    color=colour,
                    fontsize=12,
                    fontweight="bold",
                    ha="left" if is_first else "right",
                    va="center",
                )

    start, end = curve.mean[0], curve.mean[-1]
    label = f"P(success) along the completion, from {start:.2f} before its first token to {end:.0f} after its last"
    label += f", with {len(marks)} pivot{'s' * (len(marks) != 1)}"
    return chart(f"{name}-curve", label, _HEIGHTS, draw)


def thinned(curve: Curve, marks: Sequence[CurveMark]) -> list[int]:
    """Which values of a curve are drawn: all, or of a long one evenly many and both sides of every pivot."""
    count = len(curve.positions)
    if count <= _MOST_POINTS:
        return list(range(count))
    kept = {curve.positions.index(end) for mark in marks for end in (mark.start, mark.end)}
    kept |= {round(i * (count - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)}
    return sorted(kept)
