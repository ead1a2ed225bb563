"""The colours of the page, in light and dark.

Blue and vermilion are told apart by everybody (M. Okabe, K. Ito, "Color Universal Design", 2008); that something helps
or harms is also said by a sign, a shape or a word. Every ink has a contrast of at least 4.5 on what it is written on.

A chart is drawn in stand-in colours, one for each name; `svg` puts a class in the place of each, and the style sheet
gives the class its colour. So one drawing follows the reader's colour scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BINS: Final = 9
"""Colours of the heat map, from the worst over none to the best."""

LIGHT: Final[Mapping[str, str]] = {
    "page": "#ffffff",
    "panel": "#f5f7f9",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "line": "#d3d9e0",
    "grid": "#e6eaee",
    "curve": "#3d4752",
    "band": "#d5dde6",
    "good": "#0a5c9e",
    "bad": "#a3400a",
    "good-soft": "#d9e9f7",
    "bad-soft": "#fbe4d4",
    "heat0": "#e8935a",
    "heat1": "#efb189",
    "heat2": "#f5cdb3",
    "heat3": "#fae6d9",
    "heat4": "#f1f2f4",
    "heat5": "#d9e9f6",
    "heat6": "#b5d4ee",
    "heat7": "#8cbce3",
    "heat8": "#62a3d6",
}
DARK: Final[Mapping[str, str]] = {
    "page": "#0f1317",
    "panel": "#181e24",
    "ink": "#e7eaee",
    "muted": "#9da8b4",
    "line": "#333c46",
    "grid": "#242c34",
    "curve": "#c3cbd4",
    "band": "#2c3946",
    "good": "#74b9f2",
    "bad": "#ffa36c",
    "good-soft": "#12324d",
    "bad-soft": "#4a2812",
    "heat0": "#96521f",
    "heat1": "#75411e",
    "heat2": "#57321a",
    "heat3": "#3a2416",
    "heat4": "#20262d",
    "heat5": "#122d43",
    "heat6": "#153f61",
    "heat7": "#1a5482",
    "heat8": "#1f669f",
}
STAND_INS: Final[Mapping[str, str]] = {name: f"#01{number:04x}" for number, name in enumerate(LIGHT)}
"""What a chart draws in place of each colour."""


def style_rules() -> str:
    """The style sheet's part about colours: the variables of both schemes, and the classes of charts and heat maps."""
    schemes = (":root", LIGHT), ("@media (prefers-color-scheme: dark) { :root", DARK)
    lines = []
    for opening, colours in schemes:
        values = " ".join(f"--{name}: {value};" for name, value in colours.items())
        lines.append(f"{opening} {{ {values} }}" + (" }" if opening.startswith("@") else ""))
    for name in LIGHT:
        lines += [f".fill-{name} {{ fill: var(--{name}); }}", f".stroke-{name} {{ stroke: var(--{name}); }}"]
    lines += [f".heat{number} {{ background: var(--heat{number}); }}" for number in range(BINS)]
    return "\n".join(lines)


def heat_bin(value: float, reach: float) -> int:
    """Which colour of the heat map stands for a value between -reach and +reach."""
    if reach <= 0:
        return BINS // 2
    share = min(max(value / reach, -1.0), 1.0)
    return round((share + 1) / 2 * (BINS - 1))
