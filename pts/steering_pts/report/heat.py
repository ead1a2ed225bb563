"""The heat maps of a calibration: the lift of every block and strength that was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from steering_pts.report.palette import heat_bin
from steering_pts.report.results import CalibratedGroup, Chosen, Setting

_MOST_COLUMNS: Final = 8
_MOST_MAPS: Final = 16
_MOST_BLOCKS: Final = 64


@dataclass(frozen=True, slots=True)
class Cell:
    """A block and strength: the lift on so many problems, and whether it was chosen or left the race."""

    setting: Setting
    bin: int
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One method with one trigger: a row for each block, a column for each strength or range of strengths.

    Attributes:
        columns: Their titles.
        rows: Block and cells; a cell is None where nothing was tried.
    """

    method: str
    trigger: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """A group's maps, the best first, and how many more there are. `reach` is the lift of the strongest colour."""

    maps: tuple[HeatMap, ...]
    more: int
    reach: float


def heat_maps(group: CalibratedGroup) -> HeatMaps:
    """The maps of a group's search."""
    settings = [setting for setting in group.settings if setting.lift is not None]
    reach = max((abs(setting.lift or 0.0) for setting in settings), default=0.0)
    by_kind = _by_kind(settings)
    best_first = sorted(by_kind.items(), key=lambda item: -max(_lift(setting) for setting in item[1]))
    maps = [_map(kind, own, group.chosen, reach) for kind, own in best_first[:_MOST_MAPS]]
    return HeatMaps(tuple(maps), max(len(best_first) - _MOST_MAPS, 0), reach)


def _by_kind(settings: Sequence[Setting]) -> dict[tuple[str, str], list[Setting]]:
    """The settings of each map: of a method with a trigger.

    Probes and centroids that are read at one block for each steered one share a map; where several are read for the
    same steered block, each block that is read has a map of its own.
    """
    read: dict[tuple[str, str, int], set[str]] = {}
    for setting in settings:
        name = trigger_name(setting.trigger)
        read.setdefault((setting.method, _kind(name), setting.block), set()).add(name)
    several = {(method, kind) for (method, kind, _), names in read.items() if len(names) > 1}
    found: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings:
        name = trigger_name(setting.trigger)
        own = name if (setting.method, _kind(name)) in several else _kind(name)
        found.setdefault((setting.method, own), []).append(setting)
    return found


def _kind(name: str) -> str:
    return name.split(" at block ", maxsplit=1)[0]


def trigger_name(trigger: object) -> str:
    """A trigger in one word, with the block that it reads."""
    if not isinstance(trigger, Mapping):
        return str(trigger).replace("@", " at block ")
    kind = str(trigger.get("kind", trigger.get("type", "trigger")))
    block = trigger.get("block")
    return kind if block is None else f"{kind} at block {block}"


def _map(kind: tuple[str, str], settings: Sequence[Setting], chosen: Chosen | None, reach: float) -> HeatMap:
    columns = _columns(settings)
    blocks = sorted({setting.block for setting in settings})[:_MOST_BLOCKS]
    rows = []
    for block in blocks:
        cells: list[Cell | None] = []
        for _, low, high in columns:
            own = [s for s in settings if s.block == block and low <= s.strength <= high]
            # Of several in a range, what was tried on most problems counts most.
            best = max(own, key=lambda s: (_is(s, chosen), s.problems, _lift(s)), default=None)
            cells.append(
                None if best is None else Cell(best, heat_bin(_lift(best), reach), _is(best, chosen))
            )
        rows.append((block, tuple(cells)))
    return HeatMap(kind[0], kind[1], tuple(title for title, _, _ in columns), tuple(rows))


def _columns(settings: Sequence[Setting]) -> list[tuple[str, float, float]]:
    """Title, least and greatest strength of every column."""
    strengths = sorted({setting.strength for setting in settings})
    if len(strengths) <= _MOST_COLUMNS:
        return [(f"\u00d7{strength:.3g}", strength, strength) for strength in strengths]
    if strengths[0] <= 0:
        bounds = [
            strengths[0] + (strengths[-1] - strengths[0]) * i / _MOST_COLUMNS
            for i in range(_MOST_COLUMNS + 1)
        ]
    else:  # strengths are multiples of lengths, so ranges of equal ratio
        ratio = strengths[-1] / strengths[0]
        bounds = [strengths[0] * ratio ** (i / _MOST_COLUMNS) for i in range(_MOST_COLUMNS + 1)]
    columns = []
    for number in range(_MOST_COLUMNS):
        is_last = number == _MOST_COLUMNS - 1
        low, high = bounds[number], math.inf if is_last else math.nextafter(bounds[number + 1], -math.inf)
        inside = [
            strength for strength in strengths if low <= strength <= high or (number == 0 and strength < low)
        ]
        if inside:
            least, greatest = inside[0], inside[-1]
            title = f"\u00d7{least:.3g}" if least == greatest else f"\u00d7{least:.3g}\u2013{greatest:.3g}"
            columns.append((title, least, greatest))
    return columns


def _lift(setting: Setting) -> float:
    return setting.lift or 0.0


def _is(setting: Setting, chosen: Chosen | None) -> bool:
    return (
        chosen is not None
        and chosen.strength is not None
        and (chosen.method, chosen.block) == (setting.method, setting.block)
        and trigger_name(chosen.trigger) == trigger_name(setting.trigger)
        and math.isclose(chosen.strength, setting.strength, rel_tol=1e-6)
    )
