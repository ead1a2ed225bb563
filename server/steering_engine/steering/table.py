"""The resident table of directions, one per block: distinct requests' vectors are data, never new code paths."""

from __future__ import annotations

import heapq
import math
import mmap
import threading
from collections.abc import Iterable, Mapping, Sequence

import torch

from steering_engine.errors import ModelError, VectorTableFullError
from steering_engine.steering.changes import RowChanges

DEFAULT_CAPACITY = 16_384
"""Rows of each block where nothing else is said."""

Rows = dict[int, tuple[list[int], torch.Tensor]]
"""Some rows of a table on the CPU: by block, their slots and `[n, hidden]`."""


class DirectionTable:
    """Rows by block and slot, `[blocks, capacity, hidden]` float32 on the model's device.

    A row is a row: a unit direction, the weight of a probe, or a centroid. Slot 0 of every block is zero and never
    handed out. The tensor has its whole size from the start and never moves, because a captured CUDA graph holds the
    addresses of what it reads. Handing rows out and taking them back is safe from any thread; reading a slot that was
    handed out needs no lock.

    Args:
        block_count: Decoder blocks of the model.
        hidden_size: Width of the residual stream.
        device: Where the rows are.
        capacity: Rows of each block, the zero row among them; at least 2.

    Raises:
        ModelError: The device has no room for so many rows.
    """

    def __init__(
        self, block_count: int, hidden_size: int, device: torch.device, capacity: int = DEFAULT_CAPACITY
    ) -> None:
        self._device = device
        # Views made once: a block's tensor is then the same object whenever it is asked for.
        self._rows = _zeros((block_count, capacity, hidden_size), device).unbind()
        self._slots = [_Slots(capacity) for _ in range(block_count)]
        self._changes = RowChanges()
        self._lock = threading.Lock()

    def add(self, block: int, row: torch.Tensor) -> int:
        """Stores one row `[hidden]` for a block and returns its slot; see `add_all`."""
        ((slot,),) = self.add_all({block: row[None]}).values()
        return slot

    def add_all(self, rows: Mapping[int, torch.Tensor]) -> dict[int, tuple[int, ...]]:
        """Stores rows `[n, hidden]` of some blocks, all or none, and returns their slots by block, in the same order.

        When it returns, the rows are on the device: a forward on any stream sees them.

        Raises:
            VectorTableFullError: A block has too few free rows; nothing is stored.
        """
        with self._lock:
            self._check_room(rows)
            taken = {block: self._slots[block].take(len(new)) for block, new in rows.items()}
            try:
                for block, new in rows.items():
                    self._rows[block][list(taken[block])] = new.to(self._rows[block])
                if self._device.type == "cuda":
                    torch.cuda.current_stream(self._device).synchronize()
            except BaseException:
                for block, slots in taken.items():
                    self._slots[block].give_back(slots)
                raise
            for block, slots in taken.items():
                self._changes.note(block, slots)
            return taken

    def release(self, block: int, slots: Iterable[int]) -> None:
        """Gives slots back, to be handed out again; no request may refer to them any more.

        Raises:
            ValueError: A slot is not handed out, or is named twice; nothing is given back.
        """
        returned = list(slots)
        with self._lock:
            if not self._slots[block].hold(returned):
                raise ValueError(
                    f"slots {returned} of block {block}: each must be handed out, and named once"
                )
            self._slots[block].give_back(returned)

    def fullest(self) -> tuple[int, int]:
        """Rows that are handed out of the block with the fewest free ones, and rows that each block can hand out."""
        with self._lock:
            free = min(slots.free for slots in self._slots)
            total = self._slots[0].total
        return total - free, total

    def directions(self, block: int, slots: torch.Tensor) -> torch.Tensor:
        """The rows of `slots` `[rows]` at a block: `[rows, hidden]` float32."""
        # An index in brackets takes five times as long on a CPU.
        return self._rows[block].index_select(0, slots)

    def rows(self, block: int) -> torch.Tensor:
        """All rows of a block, `[capacity, hidden]` float32, at an address that never changes; not to be written."""
        return self._rows[block]

    def written_since(self, count: int) -> tuple[int, Rows]:
        """What was written after the first `count` writes, and how many writes there are now."""
        if count == self._changes.count:
            return count, {}
        with self._lock:
            slots = self._changes.since(count)
            rows = {block: (own, self._rows[block][own].cpu()) for block, own in slots.items()}
            return self._changes.count, rows

    def follow(self, rows: Rows) -> None:
        """Writes rows to the slots that they have in the table of another process."""
        with self._lock:
            for block, (slots, directions) in rows.items():
                self._rows[block][slots] = directions.to(self._rows[block])

    def _check_room(self, rows: Mapping[int, torch.Tensor]) -> None:
        block = max(rows, key=lambda block: len(rows[block]) - self._slots[block].free)
        slots, needed = self._slots[block], len(rows[block])
        if needed > slots.free:
            raise VectorTableFullError(block, needed=needed, free=slots.free, total=slots.total)


class _Slots:
    """The slots of one block; the lowest free one is handed out first."""

    def __init__(self, capacity: int) -> None:
        self.total = capacity - 1  # without the zero row
        self._used: set[int] = set()
        self._returned: list[int] = []
        self._fresh = 1

    @property
    def free(self) -> int:
        return self.total - len(self._used)

    def take(self, count: int) -> tuple[int, ...]:
        return tuple(self._take_one() for _ in range(count))

    def _take_one(self) -> int:
        if self._returned:
            slot = heapq.heappop(self._returned)
        else:
            slot = self._fresh
            self._fresh += 1
        self._used.add(slot)
        return slot

    def hold(self, slots: Sequence[int]) -> bool:
        return self._used.issuperset(slots) and len(set(slots)) == len(slots)

    def give_back(self, slots: Sequence[int]) -> None:
        self._used.difference_update(slots)
        for slot in slots:
            heapq.heappush(self._returned, slot)


def _zeros(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    size = 4 * math.prod(shape)
    try:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=torch.float32, device=device)
        # torch.zeros writes every page; an anonymous mapping is zero without, and takes memory where it is written.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (RuntimeError, OSError, OverflowError) as error:
        raise ModelError(
            f"no room for a vector table of {size} bytes on {device}: {error}; take a smaller vector_table_bytes"
        ) from error
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
