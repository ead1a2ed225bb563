"""What steering does to the rest of a completion: KL(steered || unsteered) of the next token, at every step.

The steered completion is teacher-forced through the model twice, in the same batch shape: once with its recorded acts
applied to the residual stream, once without. Before the first act both forwards have the same bits, so the divergence
there is exactly 0, and a completion without acts needs no forward.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.steering.ops import Effect, effect_of, steer
from steering_engine.vectors.schema import SteeringVector
from steering_pts.progress import Advance
from steering_spec import Clamp, ConflictPolicy, SteeringAct, SteeringSpec, VectorRef

_ROWS_PER_FORWARD = 4096
_LOGITS_PER_FORWARD = 1 << 27  # 512 MiB in float32, twice: with a vocabulary of 150,000 that is 900 rows
_LOGITS_AT_ONCE = 1 << 23  # turned into float64 log-probabilities of both forwards


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


@dataclass(frozen=True, slots=True)
class Divergence:
    """The divergence of one completion, step by step.

    Attributes:
        kl: KL(steered || unsteered) in nats of the distribution that predicts each generated token, over the whole
            vocabulary at temperature 1, whatever the sampler left of it.
        steered: Whether a rule acted at the step's own row.
    """

    kl: tuple[float, ...]
    steered: tuple[bool, ...]

    def counted(self, *, every_step: bool = False) -> tuple[float, int]:
        """Sum of the divergence in nats and number of steps, of those not steered, or of all of them."""
        values = [kl for kl, steered in zip(self.kl, self.steered, strict=True) if every_step or not steered]
        return sum(values), len(values)


class Observer(NamedTuple):
    """Sees the residual stream of a steered forward, at each block before a rule acts there.

    Attributes:
        blocks: Blocks whose resid_post is seen.
        see: Called with the number of a completion, a block, and the states at all steps `[steps, hidden]`.
    """

    blocks: tuple[int, ...]
    see: Callable[[int, int, torch.Tensor], None]


class DivergenceSummary(NamedTuple):
    """Mean and 95 % quantile in nats per token over the steps of many completions, and how many those are."""

    mean: float
    p95: float
    steps: int


def summarise(divergences: Sequence[Divergence], *, every_step: bool = False) -> DivergenceSummary | None:
    """The divergence per token over the steps that are not steered, or over all; None where there is none."""
    values = [
        kl
        for one in divergences
        for kl, steered in zip(one.kl, one.steered, strict=True)
        if every_step or not steered
    ]
    if not values:
        return None
    return DivergenceSummary(float(np.mean(values)), float(np.quantile(values, 0.95)), len(values))


def kl_per_token(
    loaded: LoadedModel,
    completions: Sequence[TracedCompletion],
    vectors: Mapping[str, SteeringVector],
    advance: Advance | None = None,
    observer: Observer | None = None,
) -> list[Divergence]:
    """The divergence of each completion, in order.

    Args:
        loaded: The model that made them.
        completions: Steered completions with their acts.
        vectors: The vectors that their steering names, by id.
        advance: Hears of every completion, with its number of generated tokens.
        observer: Sees the steered residual streams, also of completions without acts.

    Raises:
        KeyError: A vector that acted is not among them.
        ValueError: A completion without generated tokens.
    """
    if any(not completion.ids for completion in completions):
        raise ValueError("a completion without generated tokens has no divergence")
    results: list[Divergence | None] = [None] * len(completions)
    open_ones = []
    for index, completion in enumerate(completions):
        if completion.acts or observer is not None:
            open_ones.append(index)
        else:
            nothing = len(completion.ids)
            results[index] = Divergence((0.0,) * nothing, (False,) * nothing)
            if advance is not None:
                advance(nothing)
    order = sorted(open_ones, key=lambda i: _length(completions[i]))
    most_rows = max(1, min(_ROWS_PER_FORWARD, _LOGITS_PER_FORWARD // loaded.vocab_size))
    while order:
        longest = _length(completions[order[-1]])
        batch = [order.pop() for _ in range(min(len(order), max(1, most_rows // longest)))]
        forced = _force(loaded, [completions[i] for i in batch], vectors, _numbered(observer, batch))
        for index, divergence in zip(batch, forced, strict=True):
            results[index] = divergence
            if advance is not None:
                advance(len(divergence.kl))
    return [divergence for divergence in results if divergence is not None]


def _numbered(observer: Observer | None, batch: Sequence[int]) -> Observer | None:
    """The observer of a batch, told of completions by their place in all of them."""
    if observer is None:
        return None
    return Observer(observer.blocks, lambda row, block, states: observer.see(batch[row], block, states))


def _length(completion: TracedCompletion) -> int:
    return len(completion.prompt_ids) + len(completion.ids)


@torch.inference_mode()
def _force(
    loaded: LoadedModel,
    batch: Sequence[TracedCompletion],
    vectors: Mapping[str, SteeringVector],
    observer: Observer | None,
) -> list[Divergence]:
    length = max(map(_length, batch))
    input_ids = torch.zeros(len(batch), length, dtype=torch.long, device=loaded.device)
    # Padding stands on the right, where causal attention never looks.
    for row, one in enumerate(batch):
        input_ids[row, : _length(one)] = torch.tensor([*one.prompt_ids, *one.ids], device=loaded.device)
    # Only rows that predict a generated token are compared.
    first = min(len(one.prompt_ids) for one in batch) - 1
    kept = torch.arange(first, length, device=loaded.device)
    arguments: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "use_cache": False,
        "logits_to_keep": kept,
    }
    plain = loaded.model(**arguments).logits
    with (
        _watching(loaded, batch, observer),
        _acting(loaded, _changes(batch, vectors, loaded.device)),
    ):
        steered = loaded.model(**arguments).logits
    results = []
    for row, one in enumerate(batch):
        start = len(one.prompt_ids) - 1 - first
        steps = slice(start, start + len(one.ids))
        acted = {act.step for act in one.acts if act.step is not None}
        results.append(
            Divergence(
                tuple(_kl(steered[row, steps], plain[row, steps])),
                tuple(step in acted for step in range(len(one.ids))),
            )
        )
    return results


def _kl(steered: torch.Tensor, plain: torch.Tensor) -> list[float]:
    """KL(softmax(steered) || softmax(plain)) in nats of each row: `[rows, vocab]` twice to `[rows]`."""
    size = max(1, _LOGITS_AT_ONCE // steered.shape[-1])
    values: list[float] = []
    for part in range(0, len(steered), size):
        p, q = (logits[part : part + size].double().log_softmax(-1) for logits in (steered, plain))
        # What the steered model can't say adds nothing, however unlikely; rounding may leave a negative last bit.
        terms = torch.where(p > -torch.inf, p.exp() * (p - q), torch.zeros_like(p))
        values += terms.sum(-1).clamp(min=0.0).tolist()
    return values


class _Lane(NamedTuple):
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


def _changes(
    batch: Sequence[TracedCompletion], vectors: Mapping[str, SteeringVector], device: torch.device
) -> dict[int, list[_Lane]]:
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


def _lane(changes: Sequence[tuple[int, int, torch.Tensor, Effect]], device: torch.device) -> _Lane:
    samples, positions, directions, effects = zip(*changes, strict=True)
    return _Lane(
        torch.tensor(samples, device=device),
        torch.tensor(positions, device=device),
        torch.stack(directions).to(device),
        torch.tensor(effects, dtype=torch.float32, device=device),
    )


@contextmanager
def _watching(
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
def _acting(loaded: LoadedModel, changes: Mapping[int, Sequence[_Lane]]) -> Iterator[None]:
    """Forwards of this thread are steered so; those of an engine that runs beside are left alone."""
    blocks = find_blocks(loaded.model)
    thread = threading.get_ident()

    def hook(lanes: Sequence[_Lane]) -> Any:
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
