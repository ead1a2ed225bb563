"""The resident table of directions, one per block: distinct requests' vectors are data, never new code paths."""

from __future__ import annotations

import threading

import torch

from steering_engine.steering.changes import RowChanges

Rows = dict[int, tuple[list[int], torch.Tensor]]
"""Some rows of a table on the CPU: by block, their slots and `[n, hidden]`."""


class DirectionTable:
    """Unit directions by block and slot, `[slots, hidden]` float32 on the model's device.

    Slots are handed out once and never reused while a request may still refer to them; writing happens under a lock,
    reading a slot that was handed out needs none.
    """

    def __init__(self, block_count: int, hidden_size: int, device: torch.device) -> None:
        self._tables = [
            torch.zeros(8, hidden_size, dtype=torch.float32, device=device) for _ in range(block_count)
        ]
        self._used = [0] * block_count
        self._changes = RowChanges()
        self._lock = threading.Lock()

    def add(self, block: int, direction: torch.Tensor) -> int:
        """Stores a direction `[hidden]` for a block and returns its slot."""
        with self._lock:
            slot = self._used[block]
            self._grow(block, slot)
            self._tables[block][slot] = direction.to(self._tables[block])
            self._used[block] = slot + 1
            self._changes.note(block, [slot])
            return slot

    def _grow(self, block: int, slot: int) -> None:
        # Doubling into a new tensor: a forward that reads the old one still sees every slot it knows.
        while slot >= len(self._tables[block]):
            table = self._tables[block]
            self._tables[block] = torch.cat([table, torch.zeros_like(table)])

    def directions(self, block: int, slots: torch.Tensor) -> torch.Tensor:
        """The directions of `slots` `[rows]` at a block: `[rows, hidden]` float32."""
        return self._tables[block][slots]

    def written_since(self, count: int) -> tuple[int, Rows]:
        """What was written after the first `count` writes, and how many writes there are now."""
        if count == self._changes.count:
            return count, {}
        with self._lock:
            slots = self._changes.since(count)
            rows = {block: (own, self._tables[block][own].cpu()) for block, own in slots.items()}
            return self._changes.count, rows

    def follow(self, rows: Rows) -> None:
        """Writes rows to the slots that they have in the table of another process."""
        with self._lock:
            for block, (slots, directions) in rows.items():
                self._grow(block, max(slots))
                self._tables[block][slots] = directions.to(self._tables[block])
