"""How a direction is made from recorded events: pure functions of states, and one that learns on the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_pts.vectors.events import PivotEvent

OPTIMISER_STEPS = 80
_LEARNING_RATE = 0.04  # in units of the mean residual norm
_NORM_PENALTY = 0.02


def paired_difference(chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean difference of the states at the better and at the worse token, weighted by the pivots' effects.

    Contrastive activation addition (Rimsky et al., arXiv 2312.06681).

    Args:
        chosen: `[events, hidden]`.
        rejected: `[events, hidden]`.
        weights: `[events]`, positive.

    Returns:
        `[hidden]`, in residual units.
    """
    return (weights[:, None] * (chosen - rejected)).sum(0) / weights.sum()


def optimised(
    loaded: LoadedModel,
    events: Sequence[PivotEvent],
    block: int,
    residual_norm: float,
    steps: int = OPTIMISER_STEPS,
) -> torch.Tensor:
    """A vector learned on the frozen model to prefer the better token when it is added at the decision's row.

    Minimises -log sigmoid(log p(chosen) - log p(rejected)), weighted by the pivots' effects, plus a penalty on the
    norm (after bi-directional preference optimisation, Cao et al., arXiv 2406.00045). Starts from zero, so it is
    deterministic.

    Args:
        loaded: The model; its weights are not changed.
        events: The decisions.
        block: Block whose resid_post the vector is added to.
        residual_norm: Mean norm of resid_post there, the unit of the step size.
        steps: Steps of Adam, each over all events.

    Returns:
        `[hidden]`, in residual units.
    """
    device = loaded.device
    length = max(len(event.prefix_ids) for event in events)
    input_ids = torch.zeros(len(events), length, dtype=torch.long, device=device)
    for row, event in enumerate(events):
        input_ids[row, : len(event.prefix_ids)] = torch.tensor(event.prefix_ids)
    rows = torch.arange(len(events), device=device)
    last = torch.tensor([len(event.prefix_ids) - 1 for event in events], device=device)
    # Logits of the decisions' rows alone: those of all rows are the largest tensor of a model with many ids.
    kept, column = torch.unique(last, return_inverse=True)
    chosen = torch.tensor([event.chosen_id for event in events], device=device)
    rejected = torch.tensor([event.rejected_id for event in events], device=device)
    weights = torch.tensor([event.weight for event in events], device=device)
    weights = weights / weights.sum()
    vector = torch.zeros(loaded.hidden_size, device=device, requires_grad=True)

    def add_vector(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = hidden.index_put((rows, last), (residual_norm * vector).to(hidden.dtype), accumulate=True)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    optimiser = torch.optim.Adam([vector], lr=_LEARNING_RATE)
    handle = find_blocks(loaded.model)[block].register_forward_hook(add_vector)
    try:
        with torch.enable_grad():
            for _ in range(steps):
                output = loaded.model(input_ids=input_ids, use_cache=False, logits_to_keep=kept)
                logits = output.logits[rows, column].float()
                preference = logits[rows, chosen] - logits[rows, rejected]
                loss = -(weights * logsigmoid(preference)).sum() + _NORM_PENALTY * vector.norm()
                optimiser.zero_grad()
                loss.backward()
                # At zero the norm has no gradient; torch gives NaN-free zeros there, so the first step is the loss's.
                optimiser.step()
    finally:
        handle.remove()
    return (residual_norm * vector).detach().cpu()


def split_half_cosine(make: Callable[[list[int]], torch.Tensor], count: int) -> float | None:
    """Reliability: the cosine between the directions made from the even and from the odd events.

    Args:
        make: Makes a direction `[hidden]` from a list of event indices.
        count: Number of events; with fewer than two there are no halves, and the answer is None.
    """
    if count < 2:
        return None
    first, second = make(list(range(0, count, 2))), make(list(range(1, count, 2)))
    return float(torch.cosine_similarity(first.double(), second.double(), dim=0))
