"""Pivots and quiet places made by hand, and states of the residual stream from plain forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_pts.ledger.records import CompletionRecord
from steering_pts.oracles.base import Verdict
from steering_pts.vectors.events import PivotEvent
from steering_pts.vectors.matching import QuietPlace
from steering_pts.vectors.reading import Reading


def event(
    prefix: Sequence[int],
    chosen: int = 40,
    rejected: int = 41,
    effect: float = 0.5,
    problem: str = "",
    completion: str = "",
    position: int = 0,
) -> PivotEvent:
    """A decision."""
    return PivotEvent(tuple(prefix), chosen, rejected, effect, problem, completion, position)


def quiet(
    ids: Sequence[int],
    position: int,
    problem: str = "p",
    completion: str = "c",
    prompt: Sequence[int] = (5, 6),
) -> QuietPlace:
    """A place where nothing is decided, of a completion with these ids."""
    record = CompletionRecord(
        id=completion,
        problem_id=problem,
        index=0,
        seed=0,
        prompt_ids=tuple(prompt),
        ids=tuple(ids),
        verdict=Verdict.CORRECT,
        extracted=None,
        finish_reason="stop",
    )
    return QuietPlace(record, position)


def plain_states(loaded: LoadedModel, readings: Sequence[Reading]) -> dict[int, torch.Tensor]:
    """resid_post of the readings' rows at every block `[rows, hidden]`, from one plain forward with hooks."""
    states: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[block] = torch.stack(
                [hidden[number, row] for number, one in enumerate(readings) for row in one.rows]
            )

        return hook

    handles = [b.register_forward_hook(keep(i)) for i, b in enumerate(find_blocks(loaded.model))]
    with torch.no_grad():
        loaded.model(torch.tensor([one.ids for one in readings]), use_cache=False)
    for handle in handles:
        handle.remove()
    return states
