"""The steering plan: what a request's rules do, compiled; its state while a completion is generated; and the batch.

`SteeringPlan` is what a request carries, `SteeringState` decides step by step what its rules do, `BatchPlan` gathers
the decisions of all requests in a forward into index tensors per block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from steering_engine.steering import ops
from steering_engine.steering.contexts import CompiledTrigger, TriggerState
from steering_engine.steering.selectors import ResolvedSelector
from steering_engine.steering.table import DirectionTable
from steering_spec import SteeringAct, SteeringSpec


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule against one prompt.

    Attributes:
        index: Index into the request's rules.
        layers: Blocks steered, ascending.
        slots: Slot of the direction in each block's table, parallel to `layers`.
        scales: Strength in residual units at each block, parallel to `layers`.
        selector: Where.
        trigger: When; None means always.
    """

    index: int
    layers: tuple[int, ...]
    slots: tuple[int, ...]
    scales: tuple[float, ...]
    selector: ResolvedSelector
    trigger: CompiledTrigger | None


@dataclass(frozen=True, slots=True)
class SteeringPlan:
    """All rules of a request that can change anything.

    Attributes:
        rules: Rules with a strength other than 0.
        prompt_length: Tokens of the prompt.
        applied: The canonical spec: defaults filled in, every vector with its digest.
        cache_salt: Digest of everything that decides how rows are steered. Cached rows may be shared only between
            requests with equal salts.
        first_row: The first row that may be steered; rows before it are those of an unsteered request.
    """

    rules: tuple[CompiledRule, ...]
    prompt_length: int
    applied: SteeringSpec
    cache_salt: bytes
    first_row: int | None


@dataclass(frozen=True, slots=True)
class RowAct:
    """A rule acting on a row: the row's position from the prompt's start, and the match where a trigger fired."""

    row: int
    rule: CompiledRule
    match_tokens: int | None
    from_prompt_clause: bool

    def describe(self, prompt_length: int) -> SteeringAct:
        """The act as it is reported."""
        return SteeringAct(
            rule_index=self.rule.index,
            layers=self.rule.layers,
            step=None if self.from_prompt_clause else self.row - (prompt_length - 1),
            prompt_position=self.row if self.from_prompt_clause else None,
            match_tokens=self.match_tokens,
        )


class SteeringState:
    """The decisions of one request, made once per step and kept, so that rows computed again are steered alike."""

    def __init__(self, plan: SteeringPlan, prompt_ids: Sequence[int]) -> None:
        self.plan = plan
        self._history = list(prompt_ids)
        self._triggers = [TriggerState(rule.trigger) if rule.trigger else None for rule in plan.rules]
        self._step_acts: list[tuple[RowAct, ...]] = []
        self._decide_next_step()

    def accept(self, token_id: int) -> None:
        """Takes the newest generated token; decides the step that comes after it."""
        self._history.append(token_id)
        self._decide_next_step()

    def _decide_next_step(self) -> None:
        step = len(self._step_acts)
        row = self.plan.prompt_length - 1 + step
        acts = []
        for rule, trigger in zip(self.plan.rules, self._triggers, strict=True):
            selected = rule.selector.selects_step(step)
            match: int | None = None
            if trigger is not None:
                match = trigger.decide(step, selected, self._history)
                selected = match is not None
            if selected:
                acts.append(RowAct(row, rule, match or None, from_prompt_clause=False))
        self._step_acts.append(tuple(acts))

    def acts(self, start: int, stop: int) -> Iterator[RowAct]:
        """The acts on rows `start <= row < stop`; a row is steered at most once by each rule."""
        last_prompt_row = self.plan.prompt_length - 1
        for row in range(start, stop):
            by_step = self._step_acts[row - last_prompt_row] if row >= last_prompt_row else ()
            if row > last_prompt_row:
                yield from by_step
                continue
            for rule in self.plan.rules:
                if rule.selector.selects_prompt_row(row):
                    yield RowAct(row, rule, None, from_prompt_clause=True)
                else:
                    yield from (act for act in by_step if act.rule is rule)


@dataclass(slots=True)
class _RowGroup:
    """Rows of one block steered by the same place in their request's list of rules: each row at most once."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)


class BatchPlan:
    """What steering does in one forward: per block, groups of rows with their slots and scales.

    Groups follow the order of rules, and no group holds a row twice. So rules on the same row act one after the
    other, and the result is the same whatever else is in the batch.
    """

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, _RowGroup]] = {}

    def add(self, batch_row: int, act: RowAct) -> None:
        """Adds an act for the row that stands at `batch_row` in the forward's packed rows."""
        for layer, slot, scale in zip(act.rule.layers, act.rule.slots, act.rule.scales, strict=True):
            group = self._groups.setdefault(layer, {}).setdefault(act.rule.index, _RowGroup())
            group.rows.append(batch_row)
            group.slots.append(slot)
            group.scales.append(scale)

    def apply(self, block: int, hidden: torch.Tensor, table: DirectionTable) -> torch.Tensor:
        """Steers the packed residual stream `[rows, hidden]` of a block; untouched rows keep their exact values."""
        groups = self._groups.get(block)
        if not groups:
            return hidden
        steered = hidden.clone()
        for _, group in sorted(groups.items()):
            rows = torch.tensor(group.rows, device=hidden.device)
            scales = torch.tensor(group.scales, dtype=torch.float32, device=hidden.device)
            directions = table.directions(block, torch.tensor(group.slots, device=hidden.device))
            steered[rows] = ops.add(steered[rows], directions, scales)
        return steered

    def __bool__(self) -> bool:
        return bool(self._groups)
