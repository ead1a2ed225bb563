"""What steering does in one forward, on the device: a plan as index tensors per block, applied to the residual stream.

Nothing in here waits for the device: what triggers read decides on the device alone, and is told to the host when the
forward is over.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import torch

from steering_engine.steering import ops
from steering_engine.steering.batch import ALWAYS, FIRST_QUESTION, BatchPlan, Entry, Question
from steering_engine.steering.state import Answer
from steering_engine.steering.table import DirectionTable
from steering_spec import TriggerKind

_TINY = torch.finfo(torch.float32).tiny


class Lane(NamedTuple):
    """Entries of one block that stand at the same place of their row, on the device: each row at most once.

    Attributes:
        rows: `[n]` packed rows, ascending.
        slots: `[n]` slots of their directions.
        effects: `[n, 5]` what is done; `[n]` strengths alone where all rows are only added to.
        gates: `[n]` gates that let the rules act; None when all are always open.
        exclusive: `[n]` whether a rule that acted on the row before keeps this one from it; None with `gates`.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    effects: torch.Tensor
    gates: torch.Tensor | None = None
    exclusive: torch.Tensor | None = None


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


def upload(plan: BatchPlan, device: torch.device) -> ForwardPlan:
    """A plan as tensors on the device."""
    return ForwardPlan(
        lanes=_lanes(plan.entries, device),
        readings=_readings(plan.questions, device),
        questions=tuple(plan.questions),
        device=device,
    )


def _lanes(by_block: Mapping[int, Sequence[Entry]], device: torch.device) -> dict[int, list[Lane]]:
    """The lanes of each block: views into one tensor of integers and one of effects, so that two copies send all."""
    if not by_block:
        return {}
    by_place = operator.attrgetter("place")
    ordered = {block: sorted(entries, key=by_place) for block, entries in by_block.items()}
    flat = list(chain.from_iterable(ordered.values()))
    columns = zip(*((one.row, one.slot, one.gate, one.exclusive) for one in flat), strict=True)
    integers = _integers(chain.from_iterable(columns), device).view(4, -1)
    effects = _floats(chain.from_iterable(one.effect for one in flat), device).view(len(flat), -1)
    lanes: dict[int, list[Lane]] = {}
    start = 0
    for block, entries in ordered.items():
        gated = any(one.gate for one in entries)
        lanes[block] = []
        for _, group in groupby(entries, key=by_place):
            adds_only = [one.effect.adds_only for one in group]
            part = slice(start, start := start + len(adds_only))
            rows, slots, gates, exclusive = integers[:, part]
            lane = Lane(rows, slots, effects[part, 0] if all(adds_only) else effects[part])
            lanes[block].append(lane._replace(gates=gates, exclusive=exclusive.bool()) if gated else lane)
    return lanes


def _readings(questions: Sequence[Question], device: torch.device) -> dict[int, BlockReading]:
    by_block: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        by_block.setdefault(question.reading.block, []).append(number)
    found = {}
    for block, numbers in by_block.items():
        asked = [questions[number] for number in numbers]
        pairs = [(place, one, slot) for place, one in enumerate(asked) for slot in one.reading.slots]
        found[block] = BlockReading(
            _integers(numbers, device),
            _floats((one.reading.threshold for one in asked), device),
            _floats((one.reading.bias for one in asked), device),
            _integers((one.row for _, one, _ in pairs), device),
            _integers((slot for _, _, slot in pairs), device),
            _integers((place for place, _, _ in pairs), device),
            _integers((one.reading.kind is TriggerKind.SIMILARITY for _, one, _ in pairs), device).bool(),
        )
    return found


def _integers(values: Iterable[int], device: torch.device) -> torch.Tensor:
    # From an array, for `torch.tensor` takes eight times as long for a list.
    return torch.frombuffer(array("q", values), dtype=torch.int64).to(device)


def _floats(values: Iterable[float], device: torch.device) -> torch.Tensor:
    return torch.frombuffer(array("f", values), dtype=torch.float32).to(device)


class ForwardPlan:
    """A forward's steering on the device, for one forward at a time: the answers are written as blocks are passed."""

    def __init__(
        self,
        lanes: dict[int, list[Lane]],
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
        steered = hidden
        taken: torch.Tensor | None = None
        for lane in lanes:
            every_row = len(lane.rows) == len(hidden)
            own = steered if every_row else steered.index_select(0, lane.rows)
            directions = table.directions(block, lane.slots)
            operation = ops.add if lane.effects.dim() == 1 else ops.steer
            changed = operation(own, directions, lane.effects)
            if lane.gates is not None and lane.exclusive is not None:
                taken = torch.zeros_like(hidden[:, 0], dtype=torch.bool) if taken is None else taken
                acts = self._gates[lane.gates] & ~(lane.exclusive & taken[lane.rows])
                taken[lane.rows] |= acts
                changed = torch.where(acts[:, None], changed, own)
            steered = changed if every_row else steered.index_copy(0, lane.rows, changed)
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
