"""The residual stream at the rows of steps: one forward for a completion, however many of its steps are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from steering_engine.loading import LoadedModel
from steering_pts.vectors.reading import Reading, record_rows

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
        on_done: Hears the tokens of every completion that is done.

    Returns:
        `[places, hidden]` float32 on the CPU for each block.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for index, (completion, _) in enumerate(places):
        wanted[completion].append(index)
    readings = []
    for completion, indices in wanted.items():
        prompt, ids = completions[completion]
        rows = tuple(len(prompt) - 1 + places[index][1] for index in indices)
        # What follows the last row that is read would only be computed and thrown away.
        readings.append(Reading((*prompt, *ids)[: max(rows) + 1], rows))
    found = record_rows(loaded, readings, blocks, on_done=on_done)
    order = torch.tensor([index for indices in wanted.values() for index in indices], dtype=torch.int64)
    back = torch.argsort(order)
    return {block: rows[back] for block, rows in found.items()}
