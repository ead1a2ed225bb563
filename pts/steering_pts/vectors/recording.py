"""Recording the residual stream around pivots with nnsight.

For every event three rows of resid_post are recorded at every block asked for: the row of the last prefix token
(the step that takes the decision), the row of the chosen token after it, and the row of the rejected token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from safetensors.torch import save_file

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_pts.vectors.events import PivotEvent

PLACES = ("prefix", "chosen", "rejected")
_ROWS_PER_FORWARD = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Recorded states.

    Attributes:
        states: resid_post by place and block, `[events, hidden]` float32 on the CPU.
    """

    states: dict[str, dict[int, torch.Tensor]]

    def residual_norm(self, block: int) -> float:
        """Mean norm of the residual stream at the decision's row."""
        return float(self.states["prefix"][block].double().norm(dim=-1).mean())

    def save(self, path: Path) -> None:
        """Writes `resid.{block}.{place}` tensors `[events, hidden]`, in one step."""
        tensors = {
            f"resid.{block}.{place}": tensor
            for place, blocks in self.states.items()
            for block, tensor in blocks.items()
        }
        temporary = path.with_name(f".{path.name}.partial")
        save_file(
            tensors, temporary, metadata={"schema": "steering.activations/1", "hook_point": "resid_post"}
        )
        temporary.replace(path)


def record(
    loaded: LoadedModel,
    events: Sequence[PivotEvent],
    blocks: Sequence[int],
    on_done: Callable[[int], None] | None = None,
) -> Recording:
    """Records the states of all events; sequences of equal length share a forward, so nothing is padded."""
    sequences = [
        (index, place, ids)
        for index, event in enumerate(events)
        for place, ids in (
            ("prefix", event.prefix_ids),
            ("chosen", (*event.prefix_ids, event.chosen_id)),
            ("rejected", (*event.prefix_ids, event.rejected_id)),
        )
    ]
    states = {
        place: {block: torch.zeros(len(events), loaded.hidden_size) for block in blocks} for place in PLACES
    }
    by_length: dict[int, list[tuple[int, str, tuple[int, ...]]]] = defaultdict(list)
    for sequence in sequences:
        by_length[len(sequence[2])].append(sequence)
    traced = TransformersModel(loaded.model, task="text-generation", tokenizer=loaded.tokenizer)
    path = _block_path(loaded.model)
    for length, alike in sorted(by_length.items()):
        size = max(1, _ROWS_PER_FORWARD // length)
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            last_rows = _last_rows(traced, path, blocks, torch.tensor([ids for _, _, ids in batch]))
            for row, (index, place, _) in enumerate(batch):
                for block in blocks:
                    states[place][block][index] = last_rows[block][row].float().cpu()
                if on_done is not None:
                    on_done(length)
    return Recording(states)


def _last_rows(
    traced: TransformersModel, path: str, blocks: Sequence[int], input_ids: torch.Tensor
) -> dict[int, torch.Tensor]:
    saved: dict[int, Any] = {}
    with torch.no_grad(), traced.trace(input_ids):
        for block in sorted(blocks):
            output = traced.get(f"{path}.{block}").output
            hidden = output[0] if isinstance(output, tuple) else output
            saved[block] = hidden[:, -1].save()
    return saved


def _block_path(model: torch.nn.Module) -> str:
    blocks = find_blocks(model)
    name: str = next(name for name, module in model.named_modules() if module is blocks)
    return name
