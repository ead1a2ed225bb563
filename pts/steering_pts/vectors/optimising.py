"""The method that learns a vector on the frozen model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_pts.vectors.events import PivotEvent

OPTIMISER_STEPS = 80
_LEARNING_RATE = 0.04  # in units of the mean residual norm
_NORM_PENALTY = 0.02
_TOKENS_PER_FORWARD = 4096
_CACHE_BYTES = 4 << 30


def optimised(
    loaded: LoadedModel,
    events: Sequence[PivotEvent],
    block: int,
    residual_norm: float,
    steps: int = OPTIMISER_STEPS,
    *,
    tokens_per_forward: int = _TOKENS_PER_FORWARD,
    cache_bytes: int = _CACHE_BYTES,
) -> torch.Tensor:
    """A vector learned on the frozen model to prefer the better token when it is added at the decision's row.

    Minimises -log sigmoid(log p(chosen) - log p(rejected)), weighted by the pivots' effects, plus a penalty on the
    norm (after bi-directional preference optimisation, Cao et al., arXiv 2406.00045). Starts from zero, so it is
    deterministic.

    The vector is added at the last row, and nothing before it can see that. So the rows before are computed once, kept
    as keys and values, and a step costs one row for each decision, however long its prefix is.

    Args:
        loaded: The model; its weights are not changed.
        events: The decisions.
        block: Block whose resid_post the vector is added to.
        residual_norm: Mean norm of resid_post there, the unit of the step size.
        steps: Steps of Adam, each over all events.
        tokens_per_forward: Tokens of a forward at most, unless one decision has more; gradients of several are summed.
        cache_bytes: Keys and values kept at most; what is beyond is computed again at every step.

    Returns:
        `[hidden]`, in residual units.
    """
    total = sum(event.weight for event in events)
    left = cache_bytes
    batches = []
    for part in _parts(sorted(events, key=lambda event: len(event.prefix_ids)), tokens_per_forward):
        batch = _Batch(loaded, part, total)
        left -= batch.keep(left)
        batches.append(batch)
    vector = torch.zeros(loaded.hidden_size, device=loaded.device, requires_grad=True)
    optimiser = torch.optim.Adam([vector], lr=_LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            # At zero the norm has no gradient; torch gives NaN-free zeros there, so the first step is the loss's.
            torch.autograd.backward(_NORM_PENALTY * vector.norm())
            for batch in batches:
                torch.autograd.backward(batch.loss(block, residual_norm * vector))
            optimiser.step()
    return (residual_norm * vector).detach().cpu()


def _parts(events: Sequence[PivotEvent], most_tokens: int) -> list[list[PivotEvent]]:
    """Events, ordered by length, in parts that have so many tokens when all are as long as the last."""
    parts: list[list[PivotEvent]] = []
    for event in events:
        if not parts or (len(parts[-1]) + 1) * len(event.prefix_ids) > most_tokens:
            parts.append([])
        parts[-1].append(event)
    return parts


class _Batch:
    """Decisions of about one length, padded on the left, so that all are taken in the last row."""

    def __init__(self, loaded: LoadedModel, events: Sequence[PivotEvent], total_weight: float) -> None:
        self._loaded = loaded
        device = loaded.device
        length = len(events[-1].prefix_ids)
        self._ids = torch.zeros(len(events), length, dtype=torch.long, device=device)
        self._mask = torch.zeros_like(self._ids)
        for row, event in enumerate(events):
            self._ids[row, length - len(event.prefix_ids) :] = torch.tensor(event.prefix_ids)
            self._mask[row, length - len(event.prefix_ids) :] = 1
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._rows = torch.arange(len(events), device=device)
        self._chosen = torch.tensor([event.chosen_id for event in events], device=device)
        self._rejected = torch.tensor([event.rejected_id for event in events], device=device)
        self._weights = torch.tensor([event.weight / total_weight for event in events], device=device)
        self._kept: Any = None

    def keep(self, most_bytes: int) -> int:
        """Keeps the keys and values of the rows before the last if there is room; says what they take."""
        cache = self._before()
        layers = [] if cache is None else cache.layers
        size = sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)
        if size > most_bytes:
            return 0
        self._kept = cache
        return size

    def loss(self, block: int, vector: torch.Tensor) -> torch.Tensor:
        """This batch's share of the loss with the vector `[hidden]` added at its decisions' rows."""

        def add_vector(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            steered = hidden + vector.to(hidden.dtype)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        before = (
            self._kept if self._kept is not None else self._before()
        )  # without the vector, so without the hook
        handle = find_blocks(self._loaded.model)[block].register_forward_hook(add_vector)
        try:
            output = self._loaded.model(
                input_ids=self._ids[:, -1:],
                attention_mask=self._mask,
                position_ids=self._positions[:, -1:],
                past_key_values=_fresh(before),
                use_cache=True,
            )
        finally:
            handle.remove()
        logits = output.logits[:, -1].float()
        preference = logits[self._rows, self._chosen] - logits[self._rows, self._rejected]
        return -(self._weights * logsigmoid(preference)).sum()

    @torch.no_grad()
    def _before(self) -> Any:
        """Keys and values of all rows before the last; None where there are none."""
        if self._ids.shape[1] == 1:
            return None
        output = self._loaded.model(
            input_ids=self._ids[:, :-1],
            attention_mask=self._mask[:, :-1],
            position_ids=self._positions[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values


def _fresh(cache: Any) -> Any:
    """The same keys and values in a cache of its own: layers grow by new tensors, so the first cache stays as it is."""
    if cache is None:
        return None
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh
