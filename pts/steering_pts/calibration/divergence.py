"""What steering does to the rest of a completion: KL(steered || unsteered) of the next token, at every step.

The steered completion is teacher-forced through the model twice, in the same batch shape: once with its recorded acts
applied to the residual stream, once without. Before the first act both forwards have the same bits, so the divergence
there is exactly 0, and a completion without acts needs no forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from steering_engine.loading import LoadedModel
from steering_engine.vectors.schema import SteeringVector
from steering_pts.calibration.forcing import Observer, TracedCompletion, acting, changes_of, watching
from steering_pts.progress import Advance

__all__ = ["Divergence", "DivergenceSummary", "Observer", "TracedCompletion", "kl_per_token", "summarise"]

_ROWS_PER_FORWARD = 4096
_LOGITS_PER_FORWARD = 1 << 27  # 512 MiB in float32, twice: with a vocabulary of 150,000 that is 900 rows
_LOGITS_AT_ONCE = 1 << 23  # turned into float64 log-probabilities of both forwards


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
        forced = _force(
            loaded, [completions[i] for i in batch], vectors, observer and observer.renumbered(batch)
        )
        for index, divergence in zip(batch, forced, strict=True):
            results[index] = divergence
            if advance is not None:
                advance(len(divergence.kl))
    return [divergence for divergence in results if divergence is not None]


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
        watching(loaded, batch, observer),
        acting(loaded, changes_of(batch, vectors, loaded.device)),
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
