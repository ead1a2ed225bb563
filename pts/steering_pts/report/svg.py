"""A matplotlib figure as an SVG element that stands in the page and follows its colours."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Final

from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

from steering_pts.report.palette import STAND_INS
from steering_pts.report.texts import clean

WIDE: Final = 720
"""Width of a chart on a large screen, in pixels."""
NARROW: Final = 330
"""Width of a chart on a phone, in pixels."""

Draw = Callable[[Figure, int], None]
"""Draws into an empty figure of a width in pixels."""

_SVG: Final = "{http://www.w3.org/2000/svg}"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
_NAMES: Final = {colour: name for name, colour in STAND_INS.items()}
_KEPT: Final = frozenset(
    {
        *("opacity", "fill-opacity", "stroke-opacity", "stroke-width", "stroke-linecap", "stroke-linejoin"),
        *("stroke-dasharray", "stroke-dashoffset", "text-anchor", "font-weight", "font-size"),
    }
)
_NUMBER: Final = re.compile(r"-?\d+\.\d+")


def chart(name: str, label: str, heights: tuple[int, int], draw: Draw) -> Markup:
    """A chart in two widths, of which the page shows the one that fits.

    Args:
        name: Unique on the page: identifiers inside begin with it.
        label: What the chart shows, for those who can't see it.
        heights: In pixels, on a large screen and on a phone.
        draw: Draws it.
    """
    parts = Markup("")
    for kind, width, height in zip(("wide", "narrow"), (WIDE, NARROW), heights, strict=True):
        parts += Markup('<div class="{}">{}</div>').format(
            kind, svg_element(f"{name}-{kind}", label, width, height, draw)
        )
    return Markup('<div class="chart">{}</div>').format(parts)


def svg_element(name: str, label: str, width: int, height: int, draw: Draw) -> Markup:
    """One drawing as an SVG element; see `chart`."""
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # the reader's own settings are for the reader's own plots
        rcParams["svg.fonttype"] = "none"  # text stays text, in the page's own font
        rcParams["svg.hashsalt"] = name
        rcParams["font.size"] = 12
        rcParams["text.parse_math"] = False
        # Texts are only measured in matplotlib's font; that it lacks a character is of no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        draw(figure, width)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ET.fromstring(file.getvalue())  # noqa: S314 -- just written by matplotlib
    _simplify(root, name)
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height), "role": "img"}
    )
    root.set("aria-label", clean(label))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=True))  # noqa: S704 -- of elements


def _simplify(root: ET.Element, name: str) -> None:
    """Takes out what the page has no use for, and puts classes in the place of stand-in colours."""
    used = {
        match
        for element in root.iter()
        for value in element.attrib.values()
        for match in re.findall(r"#([\w.-]+)", value)
    }
    names = {old: f"{name}-{number}" for number, old in enumerate(sorted(used))}
    _take_out(root)
    for element in root.iter():
        attributes = dict(element.attrib)
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "transform" and value.startswith("rotate(-0 "):
                continue
            if key == "style":
                _style(element, value)
            elif key == "id":
                if value in names:
                    element.set("id", names[value])
            elif key == _HREF:
                element.set("href", f"#{names[value[1:]]}")
            elif value.startswith("url(#"):
                element.set(key, f"url(#{names[value[5:-1]]})")
            else:
                rounded = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}", value)
                element.set(key, " ".join(rounded.split()))
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = None


def _take_out(element: ET.Element) -> None:
    """Metadata, the style sheet, and groups that group nothing."""
    children = []
    for child in element:
        _take_out(child)
        is_plain_group = child.tag == f"{_SVG}g" and not set(child.attrib) - {"id"}
        if is_plain_group or (child.tag == f"{_SVG}defs" and not len(child)):
            children += list(child)
        elif child.tag not in {f"{_SVG}metadata", f"{_SVG}style"}:
            children.append(child)
    element[:] = children


def _style(element: ET.Element, style: str) -> None:
    classes = []
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in {"fill", "stroke"} and value in _NAMES:
            classes.append(f"{key}-{_NAMES[value]}")
        elif key in {"fill", "stroke"} or key in _KEPT:
            element.set(key, value)
    if classes:
        element.set("class", " ".join(classes))
