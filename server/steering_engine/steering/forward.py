"""What steering does in one forward: the decisions of all requests as index tensors per block.

`BatchPlan` gathers them on the host; `ForwardPlan` is the same as tensors on the device, and applies it to the
residual stream. Nothing in there waits for the device: what triggers read decides on the device alone, and is told to
the host when the forward is over.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from steering_engine.steering import ops
from steering_engine.steering.ops import Effect
from steering_engine.steering.state import Answer, Candidate, RowAct
from steering_engine.steering.table import DirectionTable
from steering_engine.steering.triggers import Reading
from steering_spec import TriggerKind

ALWAYS = 0
"""The gate that is always open."""
FIRST_QUESTION = 1
"""The gate of the first question; the others follow."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(slots=True)
class Entries:
    """What is done at one block, one entry for each rule and row, as columns.

    Rows ascend, and the entries of a row stand in the order in which its rules act.

    Attributes:
        rows: Packed row.
        places: How many entries of the same row come before.
        slots: Slot of the direction.
        gates: The gate that lets the rule act.
        exclusive: 1 when a rule that acted on the row before keeps this one from it.
        effects: What is done.
    """

    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    gates: list[int] = field(default_factory=list)
    exclusive: list[int] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


class Question(NamedTuple):
    """What a trigger asks about a row: who asks, which of its rules, and what is read."""

    owner: Hashable
    rule_index: int
    row: int
    reading: Reading


class BatchPlan:
    """What steering does in one forward, gathered on the host; rows are added in ascending order.

    Entries of a row follow the order of its own rules, whatever else is in the batch; so the result for a row is the
    same in any batch.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entries] = {}
        self.questions: list[Question] = []

    def __bool__(self) -> bool:
        return bool(self.entries or self.questions)

    def add_acts(self, batch_row: int, acts: Sequence[RowAct]) -> None:
        """Adds all acts of a decided row, which stands at `batch_row` in the forward's packed rows."""
        for act in acts:
            rule = act.rule
            for layer, slot, effect in zip(rule.layers, rule.slots, rule.effects, strict=True):
                if layer in act.layers:
                    self._put(layer, batch_row, slot, effect, ALWAYS, exclusive=False)

    def add_candidates(
        self, batch_row: int, candidates: Sequence[Candidate], *, exclusive: bool, owner: Hashable
    ) -> None:
        """Adds a row that asks questions; `owner` says whose answers they are."""
        taken: set[int] = set()  # blocks where a rule acts for certain, so that no later one does
        for candidate in candidates:
            rule = candidate.act.rule
            gate = ALWAYS
            if candidate.asks and rule.trigger is not None and isinstance(rule.trigger.condition, Reading):
                gate = FIRST_QUESTION + len(self.questions)
                self.questions.append(Question(owner, rule.index, batch_row, rule.trigger.condition))
            if candidate.acts:
                gate = ALWAYS
            for layer, slot, effect in zip(rule.layers, rule.slots, rule.effects, strict=True):
                if layer not in taken:
                    self._put(layer, batch_row, slot, effect, gate, exclusive=exclusive)
            if exclusive and gate == ALWAYS:
                taken.update(rule.layers)

    def _put(self, layer: int, row: int, slot: int, effect: Effect, gate: int, *, exclusive: bool) -> None:
        entries = self.entries.get(layer)
        if entries is None:
            entries = self.entries[layer] = Entries()
        follows = bool(entries.rows) and entries.rows[-1] == row
        entries.places.append(entries.places[-1] + 1 if follows else 0)
        entries.rows.append(row)
        entries.slots.append(slot)
        entries.gates.append(gate)
        entries.exclusive.append(int(exclusive))
        entries.effects.append(effect)

    def upload(self, device: torch.device) -> ForwardPlan:
        """The same as tensors on the device."""
        return ForwardPlan(
            lanes={layer: _lanes(entries, device) for layer, entries in self.entries.items()},
            readings=_readings(self.questions, device),
            questions=tuple(self.questions),
            device=device,
        )


class Lane(NamedTuple):
    """Entries of one block that stand at the same place of their row, on the device: each row at most once.

    Attributes:
        rows: `[n]` packed rows.
        slots: `[n]` slots of their directions.
        effects: `[n, 5]` what is done; `[n]` strengths alone where all rows are only added to.
        gates: `[n]` gates that let the rules act; None when all are always open.
        exclusive: `[n]` whether a rule that acted on the row before keeps this one from it; None with `gates`.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    effects: torch.Tensor
    gates: torch.Tensor | None
    exclusive: torch.Tensor | None


class BlockReading(NamedTuple):
    """All questions about one block.

    Attributes:
        numbers: `[q]` the questions' places in the answers.
        thresholds: `[q]` least values that fire.
        biases: `[q]`.
        pair_rows: `[p]` packed rows: of every slot of every question, the row.
        pair_slots: `[p]` the slots.
        pair_questions: `[p]` index into `numbers`.
        pair_unit: `[p]` whether the row is made a unit vector first.
    """

    numbers: torch.Tensor
    thresholds: torch.Tensor
    biases: torch.Tensor
    pair_rows: torch.Tensor
    pair_slots: torch.Tensor
    pair_questions: torch.Tensor
    pair_unit: torch.Tensor


def _lanes(entries: Entries, device: torch.device) -> tuple[Lane, ...]:
    count = max(entries.places) + 1
    if count == 1:
        return (_lane(entries, range(len(entries.rows)), device),)
    by_place: list[list[int]] = [[] for _ in range(count)]
    for number, place in enumerate(entries.places):
        by_place[place].append(number)
    return tuple(_lane(entries, numbers, device) for numbers in by_place)


def _lane(entries: Entries, numbers: Sequence[int], device: torch.device) -> Lane:
    effects = [entries.effects[number] for number in numbers]
    gated = any(entries.gates)
    return Lane(
        torch.tensor([entries.rows[number] for number in numbers], device=device),
        torch.tensor([entries.slots[number] for number in numbers], device=device),
        torch.tensor(
            [effect.strength for effect in effects] if all(one.adds_only for one in effects) else effects,
            dtype=torch.float32,
            device=device,
        ),
        torch.tensor([entries.gates[number] for number in numbers], device=device) if gated else None,
        torch.tensor([entries.exclusive[number] for number in numbers], dtype=torch.bool, device=device)
        if gated
        else None,
    )


def _readings(questions: Sequence[Question], device: torch.device) -> dict[int, BlockReading]:
    by_block: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        by_block.setdefault(question.reading.block, []).append(number)
    found = {}
    for block, numbers in by_block.items():
        asked = [questions[number] for number in numbers]
        pairs = [(place, one, slot) for place, one in enumerate(asked) for slot in one.reading.slots]
        found[block] = BlockReading(
            torch.tensor(numbers, device=device),
            torch.tensor([one.reading.threshold for one in asked], dtype=torch.float32, device=device),
            torch.tensor([one.reading.bias for one in asked], dtype=torch.float32, device=device),
            torch.tensor([one.row for _, one, _ in pairs], device=device),
            torch.tensor([slot for _, _, slot in pairs], device=device),
            torch.tensor([place for place, _, _ in pairs], device=device),
            torch.tensor([one.reading.kind is TriggerKind.SIMILARITY for _, one, _ in pairs], device=device),
        )
    return found


class ForwardPlan:
    """One forward's steering on the device. It serves one forward: the answers are written as blocks are passed."""

    def __init__(
        self,
        lanes: dict[int, tuple[Lane, ...]],
        readings: dict[int, BlockReading],
        questions: tuple[Question, ...],
        device: torch.device,
    ) -> None:
        self._lanes = lanes
        self._readings = readings
        self._questions = questions
        if questions:
            self._gates = torch.zeros(FIRST_QUESTION + len(questions), dtype=torch.bool, device=device)
            self._gates[ALWAYS] = True
            self._values = torch.zeros(len(questions), dtype=torch.float32, device=device)

    def apply(self, block: int, hidden: torch.Tensor, table: DirectionTable) -> torch.Tensor:
        """Reads and steers the packed residual stream `[rows, hidden]` of a block.

        Rows that nothing acts on keep their exact bits; the tensor that is given is not written to.
        """
        reading = self._readings.get(block)
        if reading is not None:
            self._read(reading, hidden, table.rows(block))
        lanes = self._lanes.get(block)
        if not lanes:
            return hidden
        steered = hidden.clone()
        taken: torch.Tensor | None = None
        for lane in lanes:
            own = steered[lane.rows]
            directions = table.directions(block, lane.slots)
            operation = ops.add if lane.effects.dim() == 1 else ops.steer
            changed = operation(own, directions, lane.effects)
            if lane.gates is not None and lane.exclusive is not None:
                taken = torch.zeros_like(hidden[:, 0], dtype=torch.bool) if taken is None else taken
                acts = self._gates[lane.gates] & ~(lane.exclusive & taken[lane.rows])
                taken[lane.rows] |= acts
                changed = torch.where(acts[:, None], changed, own)
            steered[lane.rows] = changed
        return steered

    def _read(self, reading: BlockReading, hidden: torch.Tensor, rows: torch.Tensor) -> None:
        own = hidden[reading.pair_rows].float()
        found = ops.coordinate(own, rows[reading.pair_slots])
        norms = own.square().sum(-1).sqrt().clamp(min=_TINY)
        found = torch.where(reading.pair_unit, found / norms, found)
        values = torch.full_like(reading.biases, -torch.inf)
        values = values.scatter_reduce(0, reading.pair_questions, found, "amax") + reading.biases
        self._values[reading.numbers] = values
        self._gates[FIRST_QUESTION + reading.numbers] = values >= reading.thresholds

    def answers(self) -> dict[Hashable, dict[int, Answer]]:
        """What was asked and found, by owner and rule; to be called when the forward is over."""
        if not self._questions:
            return {}
        return read_answers(self._questions, self._gates[FIRST_QUESTION:].tolist(), self._values.tolist())


def read_answers(
    questions: Sequence[Question], fired: Sequence[bool], values: Sequence[float]
) -> dict[Hashable, dict[int, Answer]]:
    """Answers by owner and rule; a probe's score is told as a probability."""
    answers: dict[Hashable, dict[int, Answer]] = {}
    for question, fires, value in zip(questions, fired, values, strict=True):
        score = _sigmoid(value) if question.reading.kind is TriggerKind.PROBE else value
        answers.setdefault(question.owner, {})[question.rule_index] = Answer(fires, score)
    return answers


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
