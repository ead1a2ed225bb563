"""What was wrong with rows that could be used none the less, and what was made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SHOWN: Final = 8


class Mending:
    """Collects what was mended, and in which rows."""

    def __init__(self, noun: str = "row") -> None:
        """Begins without anything; `noun` is what the numbers of rows count."""
        self._noun = noun
        self._rows: dict[str, list[int]] = {}

    def note(self, what: str, number: int) -> None:
        """Row `number` was mended in this way; `what` is a clause without the row."""
        self._rows.setdefault(what, []).append(number)

    def note_all(self, what: str, numbers: Iterable[int]) -> None:
        """All these rows were."""
        for number in numbers:
            self.note(what, number)

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each kind of mending, in the order in which they were first seen."""
        return tuple(f"{what}: {self._where(rows)}" for what, rows in self._rows.items())

    def _where(self, rows: list[int]) -> str:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (
            f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        )
        return f"{self._noun} {shown}" if len(rows) == 1 else f"{len(rows)} {self._noun}s ({shown})"
