"""What steering does in a forward, in buffers that never move: what a captured CUDA graph replays.

The buffers are allocated once, before any graph is captured, and only written to afterwards; every block runs the same
kernel in every forward, and finds in the buffers whether there is anything to do for a row. So a new request or a new
vector is data: nothing is compiled, captured or allocated for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from steering_engine.steering.batch import FIRST_QUESTION, BatchPlan, Entry, Question
from steering_engine.steering.forward import read_answers
from steering_engine.steering.ops import Effect
from steering_engine.steering.state import Answer
from steering_engine.steering.table import DirectionTable
from steering_spec import TriggerKind
from steering_spec.limits import MAX_RULES

_MAX_QUESTION_SLOTS = 1 << 16
"""Centroids that all questions of one forward compare with; beyond it a forward runs without its graph."""


class _Buffer:
    """A tensor on the device that is filled from pinned memory on the host."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.device = torch.zeros(*shape, dtype=dtype, device=device)
        self._host = torch.zeros(*shape, dtype=dtype, pin_memory=device.type == "cuda")

    def write(self, values: Any) -> None:
        """Copies a tensor or a nested list to the beginning."""
        if len(values):
            count = len(values)
            self._host[:count] = torch.as_tensor(values, dtype=self._host.dtype)
            self.device[:count].copy_(self._host[:count], non_blocking=True)


class ResidentPlan:
    """One forward's steering on the device, loaded anew for each forward.

    A forward has to be over before the next is loaded. Loading and applying happen on the current stream.
    """

    def __init__(self, block_count: int, max_rows: int, device: torch.device) -> None:
        """Allocates for forwards of up to `max_rows` rows, each steered by any number of rules at any block."""
        most = max_rows * MAX_RULES
        self._block_count, self._max_rows = block_count, max_rows
        self._entry_starts = _Buffer((block_count, max_rows + 1), torch.int32, device)
        self._entries = _Buffer((block_count * most, 3), torch.int32, device)
        self._effects = _Buffer((block_count * most, 5), torch.float32, device)
        self._question_starts = _Buffer((block_count, max_rows + 1), torch.int32, device)
        self._slot_starts = _Buffer((most + 1,), torch.int32, device)
        self._slots = _Buffer((_MAX_QUESTION_SLOTS,), torch.int32, device)
        self._question_numbers = _Buffer((most, 3), torch.float32, device)
        self._gates = torch.ones(FIRST_QUESTION + most, dtype=torch.int32, device=device)
        self._values = torch.zeros(most, dtype=torch.float32, device=device)
        self._questions: list[Question] = []
        self._loaded_entries = _Entries([], [], [])
        self._loaded_asked = _Asked([], [0], [], [])

    @staticmethod
    def holds(plan: BatchPlan) -> bool:
        """Whether the buffers are large enough for what a forward's questions compare with."""
        return sum(len(one.reading.slots) for one in plan.questions) <= _MAX_QUESTION_SLOTS

    def load(self, plan: BatchPlan) -> None:
        """Takes the steering of the next forward, which has to fit; what is on the device already is not sent again."""
        order = sorted(range(len(plan.questions)), key=lambda n: _place(plan.questions[n]))
        gate_of = {FIRST_QUESTION + number: FIRST_QUESTION + place for place, number in enumerate(order)}
        self._questions = [plan.questions[number] for number in order]
        entries = _entries(plan.entries, gate_of)
        if entries != self._loaded_entries:
            self._entries.write(entries.numbers)
            self._effects.write(entries.effects)
            self._entry_starts.write(self._starts(entries.places))
            self._loaded_entries = entries
        asked = _asked(self._questions)
        if asked != self._loaded_asked:
            self._slots.write(asked.slots)
            self._slot_starts.write(asked.slot_starts)
            self._question_numbers.write(asked.numbers)
            self._question_starts.write(self._starts(asked.places))
            self._loaded_asked = asked

    def _starts(self, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Where the items of each block and row begin, `[blocks, rows + 1]`, items being sorted by both."""
        counts = torch.zeros(self._block_count * self._max_rows, dtype=torch.int32)
        if places:
            flat = torch.tensor([block * self._max_rows + row for block, row in places])
            counts = torch.bincount(flat, minlength=len(counts)).int()
        ends = counts.cumsum(0, dtype=torch.int32).view(self._block_count, self._max_rows)
        starts = torch.zeros(self._block_count, self._max_rows + 1, dtype=torch.int32)
        starts[:, 1:] = ends
        starts[1:, 0] = ends[:-1, -1]
        return starts

    def apply(self, block: int, hidden: torch.Tensor, table: DirectionTable) -> torch.Tensor:
        """Reads and steers the packed residual stream `[rows, hidden]` of a block, in place."""
        from steering_engine.steering.kernel import steer_rows  # noqa: PLC0415 -- Triton comes with CUDA builds alone

        rows, width = hidden.shape
        steer_rows[(rows,)](
            hidden,
            hidden.stride(0),
            table.rows(block),
            width,
            self._question_starts.device[block],
            self._slot_starts.device,
            self._slots.device,
            self._question_numbers.device,
            self._values,
            self._gates,
            self._entry_starts.device[block],
            self._entries.device,
            self._effects.device,
            FIRST_QUESTION=FIRST_QUESTION,
            BLOCK=1 << (width - 1).bit_length(),
        )
        return hidden

    def answers(self) -> dict[Hashable, dict[int, Answer]]:
        """What was asked and found, by owner and rule; to be called when the forward is over."""
        count = len(self._questions)
        if not count:
            return {}
        gates = self._gates[FIRST_QUESTION : FIRST_QUESTION + count]
        return read_answers(self._questions, gates.bool().tolist(), self._values[:count].tolist())


class _Entries(NamedTuple):
    """All entries of a forward, by block and row: their numbers for the kernel, and where they belong."""

    numbers: list[tuple[int, int, int]]
    effects: list[Effect]
    places: list[tuple[int, int]]


class _Asked(NamedTuple):
    """All questions of a forward, by block and row: their slots and numbers for the kernel, and where they belong."""

    slots: list[int]
    slot_starts: list[int]
    numbers: list[tuple[float, float, float]]
    places: list[tuple[int, int]]


def _entries(by_block: Mapping[int, Sequence[Entry]], gate_of: Mapping[int, int]) -> _Entries:
    found = _Entries([], [], [])
    for block in sorted(by_block):
        entries = by_block[block]
        found.numbers.extend((one.slot, gate_of.get(one.gate, one.gate), one.exclusive) for one in entries)
        found.effects.extend(one.effect for one in entries)
        found.places.extend((block, one.row) for one in entries)
    return found


def _asked(questions: Sequence[Question]) -> _Asked:
    return _Asked(
        [slot for question in questions for slot in question.reading.slots],
        [0, *accumulate(len(question.reading.slots) for question in questions)],
        [_numbers(question) for question in questions],
        [_place(question) for question in questions],
    )


def _place(question: Question) -> tuple[int, int]:
    return question.reading.block, question.row


def _numbers(question: Question) -> tuple[float, float, float]:
    reading = question.reading
    return reading.threshold, reading.bias, float(reading.kind is TriggerKind.SIMILARITY)
