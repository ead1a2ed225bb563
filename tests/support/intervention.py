"""Steering as one would write it with nnsight for one request: a trace over the whole sequence, changed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from nnsight import TransformersModel
from torch.nn.functional import normalize

from steering_engine.blocks import find_blocks
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    ContextTrigger,
    Operation,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
)
from tests.support.lively import ALPHABET

Change = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""From rows `[rows, hidden]`, a unit direction `[hidden]` and the calibrated strength to the rows as they are after."""
Choice = Callable[[Sequence[int], int], list[int]]
"""From all ids and the length of the prompt to the rows that are chosen."""


@dataclass(frozen=True)
class How:
    """An operation with its strength, and the same as a formula."""

    operation: Operation
    strength: float
    change: Change


def _along(h: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return (h @ d)[:, None]


def _kept_norm(h: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    moved = h + s * d
    kept: torch.Tensor = moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)
    return kept


HOWS = (
    How(Add(), 1.0, lambda h, d, s: h + s * d),
    How(Add(norm_preserved=True), 1.0, _kept_norm),
    How(Ablate(), 1.0, lambda h, d, _: h - _along(h, d) * d),
    How(Clamp(-0.5, 0.5), 1.0, lambda h, d, _: h + (_along(h, d).clamp(-0.5, 0.5) - _along(h, d)) * d),
    How(Add(), -1.5, lambda h, d, s: h - 1.5 * s * d),
    How(Clamp(min=4.0), 1.0, lambda h, d, _: h + (_along(h, d).clamp(min=4.0) - _along(h, d)) * d),
    How(Ablate(), 0.4, lambda h, d, _: h - 0.4 * _along(h, d) * d),
    How(Add(norm_preserved=True), -2.0, lambda h, d, s: _kept_norm(h, d, -2.0 * s)),
    How(Clamp(max=-4.0), 1.0, lambda h, d, _: h + (_along(h, d).clamp(max=-4.0) - _along(h, d)) * d),
    How(Add(), 0.3, lambda h, d, s: h + 0.3 * s * d),
    How(Clamp(2.0, 3.0), 0.5, lambda h, d, _: h + 0.5 * (_along(h, d).clamp(2.0, 3.0) - _along(h, d)) * d),
)


@dataclass(frozen=True)
class Where:
    """A selector, and the rows that it chooses; without triggers, and with them before they have spoken."""

    selector: Selector
    rows: Choice


def _steps(ids: Sequence[int], length: int, first: int = 0, stop: int = 1 << 20) -> list[int]:
    """The rows of steps `first <= step < stop`."""
    return list(range(length - 1, len(ids)))[first:stop]


FEW = frozenset(ALPHABET[2:7])

WHERES = (
    Where(Selector.every_step(), _steps),
    Where(Selector.prompt_positions(0, -2), lambda _, length: [0, length - 2]),
    Where(Selector.step_window(2, 5), lambda ids, length: _steps(ids, length, 2, 5)),
    Where(Selector.prompt_window(1, 4), lambda *_: [1, 2, 3]),
    Where(Selector.prompt_window(-4, -1), lambda _, length: [length - 4, length - 3, length - 2]),
    Where(Selector.steps(0, 3), lambda _, length: [length - 1, length + 2]),
    Where(Selector.prompt_window(-3), lambda _, length: [length - 3, length - 2, length - 1]),
    Where(Selector.step_window(6), lambda ids, length: _steps(ids, length, 6)),
    Where(
        Selector.after_tokens(*FEW),
        lambda ids, length: [row for row in _steps(ids, length) if ids[row] in FEW],
    ),
    Where(
        Selector.prompt_tokens(*FEW), lambda ids, length: [row for row in range(length) if ids[row] in FEW]
    ),
    Where(
        Selector.every_step().excluding(Selector.after_tokens(*FEW), Selector.steps(1)),
        lambda ids, length: [row for row in _steps(ids, length) if ids[row] not in FEW and row != length],
    ),
    Where(
        Selector.prompt_window(2).excluding(Selector.prompt_tokens(*FEW), Selector.prompt_positions(-1)),
        lambda ids, length: [row for row in range(2, length - 1) if ids[row] not in FEW],
    ),
    Where(
        Selector.prompt_positions(-3) | Selector.step_window(1, 4),
        lambda ids, length: [length - 3, *_steps(ids, length, 1, 4)],
    ),
)


@dataclass(frozen=True)
class When:
    """A trigger, and where it is asked."""

    trigger: ContextTrigger | ProbeTrigger | SimilarityTrigger
    where: Where

    def rows(
        self, ids: Sequence[int], length: int, hidden: torch.Tensor, vector: SteeringVector, read: int
    ) -> list[int]:
        """The rows that the rule acts on, `hidden` `[rows, hidden]` being what the block that is read gives."""
        trigger = self.trigger
        chosen = self.where.rows(ids, length)
        fires = self._fires(ids, hidden, vector, read)
        acting, firings, on_until, free_from = [], 0, 0, 0
        for row in range(length - 1, len(ids)):
            most = trigger.max_firings or len(ids)
            if row in chosen and fires[row] and row >= free_from and firings < most:
                firings += 1
                on_until = row + trigger.hold_steps
                free_from = on_until + trigger.cooldown_steps
            if row in chosen and row < on_until:
                acting.append(row)
        return acting

    def _fires(
        self, ids: Sequence[int], hidden: torch.Tensor, vector: SteeringVector, read: int
    ) -> list[bool]:
        """By row, whether the condition holds."""
        trigger = self.trigger
        if isinstance(trigger, ContextTrigger):
            length = trigger.min_match_tokens or vector.metadata.context_min_match
            ends = {context[-length:] for context in vector.contexts if len(context) >= length}
            return [tuple(ids[max(0, row + 1 - length) : row + 1]) in ends for row in range(len(ids))]
        if isinstance(trigger, ProbeTrigger):
            probe = vector.probes[read]
            fires = torch.sigmoid(hidden @ probe.weight + probe.bias) >= (trigger.threshold or 0.5)
        else:
            centroids = normalize(vector.centroids[read], dim=-1)
            fires = (normalize(hidden, dim=-1) @ centroids.T).amax(-1) >= (trigger.min_cosine or 0.6)
        found: list[bool] = fires.tolist()
        return found


_EVERY, _SOME = WHERES[0], WHERES[2]
WHENS = (
    When(ContextTrigger(1), _EVERY),
    When(ProbeTrigger(), _EVERY),
    When(SimilarityTrigger(min_cosine=0.4), _EVERY),
    When(ContextTrigger(1, hold_steps=2, cooldown_steps=1), _EVERY),
    When(ProbeTrigger(threshold=0.4, hold_steps=2, max_firings=2), _EVERY),
    When(SimilarityTrigger(min_cosine=0.3, hold_steps=3, cooldown_steps=2), _EVERY),
    When(ContextTrigger(hold_steps=3), _EVERY),
    When(ProbeTrigger(threshold=0.2, hold_steps=2), _SOME),
)
_BLOCKS = ((0,), (1, 2), (0, 1, 2), (2,), (1,))


@dataclass(frozen=True)
class Case:
    """One rule, and the same by hand.

    Attributes:
        how: What is done.
        place: Where, and when.
        blocks: Blocks that are steered, ascending.
        read: Block that a probe or a similarity reads.
    """

    how: How
    place: Where | When
    blocks: tuple[int, ...]
    read: int

    def rule(self, vector: str) -> SteeringRule:
        """The rule as a request has it."""
        selector = (self.place.where if isinstance(self.place, When) else self.place).selector
        trigger = self.place.trigger if isinstance(self.place, When) else None
        if isinstance(trigger, ProbeTrigger | SimilarityTrigger):
            trigger = replace(trigger, layer=self.read)
        return SteeringRule(vector, self.how.strength, self.blocks, self.how.operation, selector, trigger)

    def rows(
        self, ids: Sequence[int], length: int, hidden: torch.Tensor, vector: SteeringVector
    ) -> list[int]:
        """The rows that are changed."""
        if isinstance(self.place, When):
            return self.place.rows(ids, length, hidden, vector, self.read)
        return [row for row in self.place.rows(ids, length) if row < len(ids)]


def cases(count: int) -> list[Case]:
    """So many cases. Any 21 in a row have every selector and trigger, and any 11 every operation."""
    places: tuple[Where | When, ...] = (*WHERES, *WHENS)
    found = []
    for number in range(count):
        blocks = _BLOCKS[number % len(_BLOCKS)]
        read = number % (blocks[0] + 1)
        found.append(Case(HOWS[number % len(HOWS)], places[number % len(places)], blocks, read))
    return found


def logits_by_hand(
    traced: TransformersModel, ids: Sequence[int], length: int, case: Case, vector: SteeringVector
) -> torch.Tensor:
    """Logits `[steps, vocab]` of one request alone, without a cache.

    Attention is causal, so one forward over prompt and completion gives what decoding token by token would.

    Args:
        traced: The model.
        ids: Prompt and completion, without the last token.
        length: Of the prompt.
        case: What is changed.
        vector: By what.
    """
    blocks = find_blocks(traced._module)
    path = next(name for name, module in traced._module.named_modules() if module is blocks)
    strengths = vector.metadata.calibrated_strength
    rows: list[int] = []
    with torch.no_grad(), traced.trace(torch.tensor([list(ids)])):
        for block in range(len(blocks)):
            hidden = traced.get(f"{path}.{block}").output
            if block == case.read:
                rows = case.rows(ids, length, hidden[0], vector)
            if block in case.blocks and rows:
                steered = hidden.clone()
                steered[0, rows] = case.how.change(
                    hidden[0, rows], vector.directions[block], strengths[block]
                )
                traced.get(f"{path}.{block}").output = steered
        logits = traced.output.logits[0, length - 1 :].save()
    found: torch.Tensor = logits
    return found
