"""A completion's recorded acts, applied again to a plain forward; and what the residual streams are on the way."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.steering.ops import Effect, effect_of, steer
from steering_engine.vectors.schema import SteeringVector
from steering_spec import Clamp, ConflictPolicy, SteeringAct, SteeringSpec, VectorRef


@dataclass(frozen=True, slots=True)
class TracedCompletion:
    """A steered completion with what was done to it.

    Attributes:
        prompt_ids: Its prompt.
        ids: All generated ids, at least one.
        steering: The steering as it was applied; its vectors are looked up by id.
        acts: Every act, as the trace of the completion tells.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    steering: SteeringSpec
    acts: tuple[SteeringAct, ...]


class Observer(NamedTuple):
    """Sees the residual stream of a steered forward, at each block before a rule acts there.

    Attributes:
        blocks: Blocks whose resid_post is seen.
        see: Called with the number of a completion, a block, and the states at all steps `[steps, hidden]`.
    """

    blocks: tuple[int, ...]
    see: Callable[[int, int, torch.Tensor], None]

    def renumbered(self, batch: Sequence[int]) -> Observer:
        """The same for a batch, in which completions are told by their place."""
        return Observer(self.blocks, lambda row, block, states: self.see(batch[row], block, states))


class Lane(NamedTuple):
    """Acts at one block of which each changes a row of its own.

    Attributes:
        samples: `[n]` index in the batch.
        positions: `[n]` index in the sequence.
        directions: `[n, hidden]` float32.
        effects: `[n, 5]` float32.
    """

    samples: torch.Tensor
    positions: torch.Tensor
    directions: torch.Tensor
    effects: torch.Tensor


def changes_of(
    batch: Sequence[TracedCompletion], vectors: Mapping[str, SteeringVector], device: torch.device
) -> dict[int, list[Lane]]:
    """What is done at each block: lanes that act one after the other, in the order of the engine."""
    by_row: dict[tuple[int, int, int], list[tuple[torch.Tensor, Effect]]] = defaultdict(list)
    for sample, one in enumerate(batch):
        rules = one.steering.rules
        exclusive = one.steering.conflict_policy is ConflictPolicy.FIRST
        # Clamps act last, except where the first rule takes the row.
        acts = sorted(
            one.acts,
            key=lambda act: (
                not exclusive and isinstance(rules[act.rule_index].operation, Clamp),
                act.rule_index,
            ),
        )
        for act in acts:
            rule = rules[act.rule_index]
            vector = vectors[VectorRef.parse(rule.vector).id]
            position = len(one.prompt_ids) - 1 + act.step if act.step is not None else act.prompt_position
            if position is None:
                raise ValueError(
                    f"an act of rule {act.rule_index} names neither a step nor a prompt position"
                )
            for block in act.layers:
                effect = effect_of(rule.operation, rule.strength, vector.metadata.calibrated_strength[block])
                row = by_row[block, sample, position]
                if not (exclusive and row):
                    row.append((vector.directions[block], effect))
    lanes: dict[int, dict[int, list[tuple[int, int, torch.Tensor, Effect]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for (block, sample, position), changes in by_row.items():
        for place, (direction, effect) in enumerate(changes):
            lanes[block][place].append((sample, position, direction, effect))
    return {
        block: [_lane(of_place[place], device) for place in sorted(of_place)]
        for block, of_place in lanes.items()
    }


def _lane(changes: Sequence[tuple[int, int, torch.Tensor, Effect]], device: torch.device) -> Lane:
    samples, positions, directions, effects = zip(*changes, strict=True)
    return Lane(
        torch.tensor(samples, device=device),
        torch.tensor(positions, device=device),
        torch.stack(directions).to(device),
        torch.tensor(effects, dtype=torch.float32, device=device),
    )


@contextmanager
def watching(
    loaded: LoadedModel, batch: Sequence[TracedCompletion], observer: Observer | None
) -> Iterator[None]:
    """Forwards of this thread are observed; hooks that are registered later change what comes after."""
    blocks = find_blocks(loaded.model)
    thread = threading.get_ident()

    def hook(block: int, see: Callable[[int, int, torch.Tensor], None]) -> Any:
        def watch(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() != thread:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            for row, one in enumerate(batch):
                start = len(one.prompt_ids) - 1
                see(row, block, hidden[row, start : start + len(one.ids)])

        return watch

    watched = () if observer is None else observer.blocks
    handles = [
        blocks[block].register_forward_hook(hook(block, observer.see))
        for block in watched
        if observer is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def acting(loaded: LoadedModel, changes: Mapping[int, Sequence[Lane]]) -> Iterator[None]:
    """Forwards of this thread are steered so; those of an engine that runs beside are left alone."""
    blocks = find_blocks(loaded.model)
    thread = threading.get_ident()

    def hook(lanes: Sequence[Lane]) -> Any:
        def act(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
            if threading.get_ident() != thread:
                return None
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            for lane in lanes:
                rows = hidden[lane.samples, lane.positions]
                hidden[lane.samples, lane.positions] = steer(rows, lane.directions, lane.effects)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return act

    handles = [blocks[block].register_forward_hook(hook(lanes)) for block, lanes in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
