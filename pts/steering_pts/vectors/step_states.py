"""The residual stream at the rows of steps: one forward for a completion, however many of its steps are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnsight import TransformersModel

from steering_engine.loading import LoadedModel
from steering_pts.vectors.recording import block_path

_ROWS_PER_FORWARD = 4096

Place = tuple[int, int]
"""Index of a completion, and of the generated token that the step predicts."""


def step_states(
    loaded: LoadedModel,
    completions: Sequence[tuple[Sequence[int], Sequence[int]]],
    places: Sequence[Place],
    blocks: Sequence[int],
    on_done: Callable[[int], None] | None = None,
) -> dict[int, torch.Tensor]:
    """resid_post at the row of each step, the one that predicts its token.

    Args:
        loaded: The model.
        completions: Pairs of prompt ids and generated ids.
        places: The steps.
        blocks: Blocks to record.
        on_done: Hears of every completion that is done, with its number of steps.

    Returns:
        `[places, hidden]` float32 on the CPU for each block.
    """
    states = {block: torch.zeros(len(places), loaded.hidden_size) for block in blocks}
    wanted: dict[int, list[int]] = defaultdict(list)
    for index, (completion, _) in enumerate(places):
        wanted[completion].append(index)
    by_length: dict[int, list[int]] = defaultdict(list)
    for completion in wanted:
        prompt, ids = completions[completion]
        by_length[len(prompt) + len(ids) - 1].append(completion)
    traced = TransformersModel(loaded.model, task="text-generation", tokenizer=loaded.tokenizer)
    path = block_path(loaded.model)
    for length, alike in sorted(by_length.items()):  # sequences of equal length, so that nothing is padded
        size = max(1, _ROWS_PER_FORWARD // length)
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            input_ids = torch.tensor([[*completions[c][0], *completions[c][1]][:length] for c in batch])
            indices = [index for completion in batch for index in wanted[completion]]
            rows = [row for row, completion in enumerate(batch) for _ in wanted[completion]]
            columns = [len(completions[places[i][0]][0]) - 1 + places[i][1] for i in indices]
            found = _rows(traced, path, blocks, input_ids, rows, columns)
            for block in blocks:
                states[block][indices] = found[block].float().cpu()
            if on_done is not None:
                for completion in batch:
                    on_done(len(wanted[completion]))
    return states


def _rows(
    traced: TransformersModel,
    path: str,
    blocks: Sequence[int],
    input_ids: torch.Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
) -> dict[int, torch.Tensor]:
    saved: dict[int, Any] = {}
    with torch.no_grad(), traced.trace(input_ids):
        for block in sorted(blocks):
            output = traced.get(f"{path}.{block}").output
            hidden = output[0] if isinstance(output, tuple) else output
            saved[block] = hidden[rows, columns].save()
    return saved
