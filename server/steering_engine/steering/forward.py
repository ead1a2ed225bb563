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
NEVER = 1
"""The gate that never opens."""
_FIRST_QUESTION = 2
_TINY = torch.finfo(torch.float32).tiny


@dataclass(slots=True)
class _Lane:
    """Rows of one block that are steered at the same place in their own order of rules: each row at most once."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    gates: list[int] = field(default_factory=list)
    blockers: list[tuple[int, ...]] = field(default_factory=list)


class Question(NamedTuple):
    """What a trigger asks about a row: who asks, which of its rules, and what is read."""

    owner: Hashable
    rule_index: int
    row: int
    reading: Reading


class BatchPlan:
    """What steering does in one forward, gathered on the host.

    Acts of one row stand in lanes in the order of its rules, whatever else is in the batch; so the result for a row is
    the same in any batch.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, list[_Lane]] = {}
        self._questions: list[Question] = []

    def __bool__(self) -> bool:
        return bool(self._lanes or self._questions)

    def add_acts(self, batch_row: int, acts: Sequence[RowAct]) -> None:
        """Adds all acts of a decided row, which stands at `batch_row` in the forward's packed rows."""
        places: dict[int, int] = {}
        for act in acts:
            rule = act.rule
            for layer, slot, effect in zip(rule.layers, rule.slots, rule.effects, strict=True):
                if layer in act.layers:
                    self._put(places, layer, batch_row, slot, effect)

    def add_candidates(
        self, batch_row: int, candidates: Sequence[Candidate], *, exclusive: bool, owner: Hashable
    ) -> None:
        """Adds a row that may ask questions; `owner` says whose answers they are."""
        places: dict[int, int] = {}
        before: dict[int, list[int]] = {}  # gates of the rules that come first, by block
        for candidate in candidates:
            rule = candidate.act.rule
            gate = ALWAYS
            if candidate.asks and rule.trigger is not None and isinstance(rule.trigger.condition, Reading):
                gate = _FIRST_QUESTION + len(self._questions)
                self._questions.append(Question(owner, rule.index, batch_row, rule.trigger.condition))
            if candidate.acts:
                gate = ALWAYS
            for layer, slot, effect in zip(rule.layers, rule.slots, rule.effects, strict=True):
                earlier = before.setdefault(layer, [])
                if exclusive and ALWAYS in earlier:
                    continue
                self._put(places, layer, batch_row, slot, effect, gate, tuple(earlier) if exclusive else ())
                earlier.append(gate)

    def _put(
        self,
        places: dict[int, int],
        layer: int,
        row: int,
        slot: int,
        effect: Effect,
        gate: int = ALWAYS,
        blockers: tuple[int, ...] = (),
    ) -> None:
        place = places.get(layer, 0)
        places[layer] = place + 1
        lanes = self._lanes.setdefault(layer, [])
        if place == len(lanes):
            lanes.append(_Lane())
        lane = lanes[place]
        lane.rows.append(row)
        lane.slots.append(slot)
        lane.effects.append(effect)
        lane.gates.append(gate)
        lane.blockers.append(blockers)

    def upload(self, device: torch.device) -> ForwardPlan:
        """The same as tensors on the device."""
        return ForwardPlan(
            lanes={
                layer: tuple(_uploaded(lane, device) for lane in lanes)
                for layer, lanes in self._lanes.items()
            },
            readings=_readings(self._questions, device),
            questions=tuple(self._questions),
            device=device,
        )


class DeviceLane(NamedTuple):
    """A lane on the device.

    Attributes:
        rows: `[n]` packed rows, each once.
        slots: `[n]` slots of their directions.
        effects: `[n, 5]` what is done; `[n]` strengths alone where all rows are only added to.
        gates: `[n]` gates that let a row be steered; None when all are always open.
        blockers: `[n, m]` gates of rules that would have taken the row before; None when there are none.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    effects: torch.Tensor
    gates: torch.Tensor | None
    blockers: torch.Tensor | None


class DeviceReading(NamedTuple):
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


def _uploaded(lane: _Lane, device: torch.device) -> DeviceLane:
    adds_only = all(effect.adds_only for effect in lane.effects)
    effects = [effect.strength for effect in lane.effects] if adds_only else lane.effects
    gates = blockers = None
    if any(lane.gates):
        gates = torch.tensor(lane.gates, device=device)
    most = max(map(len, lane.blockers))
    if most:
        padded = [[*one, *[NEVER] * (most - len(one))] for one in lane.blockers]
        blockers = torch.tensor(padded, device=device)
    return DeviceLane(
        torch.tensor(lane.rows, device=device),
        torch.tensor(lane.slots, device=device),
        torch.tensor(effects, dtype=torch.float32, device=device),
        gates,
        blockers,
    )


def _readings(questions: Sequence[Question], device: torch.device) -> dict[int, DeviceReading]:
    by_block: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        by_block.setdefault(question.reading.block, []).append(number)
    found = {}
    for block, numbers in by_block.items():
        asked = [questions[number] for number in numbers]
        pairs = [(place, one, slot) for place, one in enumerate(asked) for slot in one.reading.slots]
        found[block] = DeviceReading(
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
        lanes: dict[int, tuple[DeviceLane, ...]],
        readings: dict[int, DeviceReading],
        questions: tuple[Question, ...],
        device: torch.device,
    ) -> None:
        self._lanes = lanes
        self._readings = readings
        self._questions = questions
        if questions:
            self._gates = torch.zeros(_FIRST_QUESTION + len(questions), dtype=torch.bool, device=device)
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
        for lane in lanes:
            own = steered[lane.rows]
            directions = table.directions(block, lane.slots)
            operation = ops.add if lane.effects.dim() == 1 else ops.steer
            changed = operation(own, directions, lane.effects)
            if lane.gates is not None or lane.blockers is not None:
                changed = torch.where(self._opened(lane)[:, None], changed, own)
            steered[lane.rows] = changed
        return steered

    def _opened(self, lane: DeviceLane) -> torch.Tensor:
        opened = torch.ones_like(lane.rows, dtype=torch.bool)
        if lane.gates is not None:
            opened = self._gates[lane.gates]
        if lane.blockers is not None:
            opened = opened & ~self._gates[lane.blockers].any(-1)
        return opened

    def _read(self, reading: DeviceReading, hidden: torch.Tensor, rows: torch.Tensor) -> None:
        own = hidden[reading.pair_rows].float()
        found = ops.coordinate(own, rows[reading.pair_slots])
        norms = own.square().sum(-1).sqrt().clamp(min=_TINY)
        found = torch.where(reading.pair_unit, found / norms, found)
        values = torch.full_like(reading.biases, -torch.inf)
        values = values.scatter_reduce(0, reading.pair_questions, found, "amax") + reading.biases
        self._values[reading.numbers] = values
        self._gates[_FIRST_QUESTION + reading.numbers] = values >= reading.thresholds

    def answers(self) -> dict[Hashable, dict[int, Answer]]:
        """What was asked and found, by owner and rule; to be called when the forward is over."""
        if not self._questions:
            return {}
        fired = self._gates[_FIRST_QUESTION:].tolist()
        answers: dict[Hashable, dict[int, Answer]] = {}
        for question, fires, value in zip(self._questions, fired, self._values.tolist(), strict=True):
            probe = question.reading.kind is TriggerKind.PROBE
            score = _sigmoid(value) if probe else value
            answers.setdefault(question.owner, {})[question.rule_index] = Answer(fires, score)
        return answers


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
