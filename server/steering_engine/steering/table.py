"""The resident table of directions, one per block: distinct requests' vectors are data, never new code paths."""

from __future__ import annotations

import threading

import torch


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
        self._lock = threading.Lock()

    def add(self, block: int, direction: torch.Tensor) -> int:
        """Stores a direction `[hidden]` for a block and returns its slot."""
        with self._lock:
            slot = self._used[block]
            table = self._tables[block]
            if slot == len(table):
                # Doubling into a new tensor: a forward that reads the old one still sees every slot it knows.
                self._tables[block] = torch.cat([table, torch.zeros_like(table)])
            self._tables[block][slot] = direction.to(self._tables[block])
            self._used[block] = slot + 1
            return slot

    def directions(self, block: int, slots: torch.Tensor) -> torch.Tensor:
        """The directions of `slots` `[rows]` at a block: `[rows, hidden]` float32."""
        return self._tables[block][slots]
