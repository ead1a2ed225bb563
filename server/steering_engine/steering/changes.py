"""Which rows of the direction table were written lately, so that other processes' tables can follow."""

from __future__ import annotations

from collections.abc import Iterable


class RowChanges:
    """Rows by block and slot in the order in which they were last written, each once.

    Attributes:
        count: Writes so far; what a follower has seen is named by it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last: dict[tuple[int, int], int] = {}  # the number of the last write, in ascending order

    def note(self, block: int, slots: Iterable[int]) -> None:
        """Takes note that rows were written."""
        for slot in slots:
            self.count += 1
            self._last.pop((block, slot), None)  # so that it goes to the end
            self._last[block, slot] = self.count

    def since(self, count: int) -> dict[int, list[int]]:
        """Slots by block that were written after the first `count` writes; costs what it returns."""
        found: dict[int, list[int]] = {}
        for (block, slot), number in reversed(self._last.items()):
            if number <= count:
                break
            found.setdefault(block, []).append(slot)
        return found
