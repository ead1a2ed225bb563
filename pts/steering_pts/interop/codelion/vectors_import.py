"""A data set of codelion steering vectors as vector files: one for each group of rows and layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import torch

from steering_engine.loading import LoadedModel
from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError
from steering_pts.interop.codelion.reading import ForeignVector
from steering_pts.interop.mending import Mending
from steering_pts.interop.model_vectors import foreign_vector, free_name, vector_name
from steering_pts.interop.recovery import Recovery
from steering_pts.vectors.events import shared_suffix

_LEAST_SHARED: Final = 2
"""A trigger on the one token that all contexts end with would fire almost anywhere."""
DEFAULT_MIN_MATCH: Final = 4
"""Shortest match of a context where a group's contexts have no end in common; AutoThink's shortest is the same."""


def vectors_of(
    source: str,
    loaded: LoadedModel,
    rows: Sequence[ForeignVector],
    mending: Mending,
    *,
    layer: int | None = None,
    licence: str = "",
) -> list[SteeringVector]:
    """The vectors of a data set, the largest group first.

    A group's direction is the mean of its rows, weighted by their effects; rows of harmful tokens are subtracted, so
    adding the result always goes towards success. Contexts are the texts before the pivots, as ids where those can be
    recovered.

    Args:
        source: The data set, for messages.
        loaded: The model that it is for.
        rows: What it holds.
        mending: Hears of everything that was mended.
        layer: Block of rows that name none.
        licence: SPDX identifier of the data set's licence.

    Raises:
        InteropError: Rows don't fit the model, or name no layer; the error holds all of them.
    """
    _check(source, loaded, rows, layer)
    recovery = Recovery(loaded.tokenizer, loaded.vocab_size)
    groups: dict[tuple[str, int], list[ForeignVector]] = defaultdict(list)
    for row in rows:
        block = row.layer if row.layer is not None else layer
        assert block is not None  # noqa: S101 -- `_check` saw to it
        groups[row.group, block].append(row)
    made: list[SteeringVector] = []
    names: set[str] = set()
    for (group, block), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        direction = _mean(members)
        if not direction.any():
            mending.note_all("left out, because a group's vectors cancel out", (m.number for m in members))
            continue
        contexts = _contexts(recovery, members, mending)
        shared = shared_suffix(contexts) if contexts else 0
        shortest = min(map(len, contexts), default=0)
        name = free_name(vector_name(f"{group}-block-{block}"), names)
        made.append(
            foreign_vector(
                source,
                loaded,
                {block: direction},
                name=name,
                method="codelion",
                description=f"mean of {len(members)} rows of {source}"[:1000],
                licence=licence,
                contexts=contexts,
                min_match=shared if shared >= _LEAST_SHARED else min(DEFAULT_MIN_MATCH, shortest),
                event_count=len(members),
            )
        )
    if not made:
        raise InteropError(source, ["the vectors of every group cancel out"])
    return made


def _check(source: str, loaded: LoadedModel, rows: Sequence[ForeignVector], layer: int | None) -> None:
    faults = []
    for row in rows:
        block = row.layer if row.layer is not None else layer
        if block is None:
            faults.append(f"row {row.number}: no steering_layer; name the block with --block")
        elif not 0 <= block < loaded.block_count:
            faults.append(
                f"row {row.number}: steering_layer {block}; the model has blocks 0 to {loaded.block_count - 1}"
            )
        if len(row.values) != loaded.hidden_size:
            faults.append(
                f"row {row.number}: a vector of {len(row.values)} numbers; the model's residual stream has width "
                f"{loaded.hidden_size}"
            )
    if faults:
        raise InteropError(source, faults)


def _mean(members: Sequence[ForeignVector]) -> torch.Tensor:
    """The weighted mean of a group's vectors `[hidden]`; rows without an effect weigh as much as the average row."""
    known = [abs(row.weight) for row in members if row.weight is not None]
    average = sum(known) / len(known) if known else 1.0
    weights = torch.tensor([average if row.weight is None else row.weight for row in members]).double()
    values = torch.tensor([row.values for row in members], dtype=torch.float64)
    return ((weights[:, None] * values).sum(0) / weights.abs().sum()).float()


def _contexts(
    recovery: Recovery, members: Sequence[ForeignVector], mending: Mending
) -> list[tuple[int, ...]]:
    found = set()
    for row in members:
        ids = recovery.text_ids(row.context)
        if ids is None:
            mending.note(
                "its context is not what this model's tokenizer makes of it and back; the vector has no trigger there",
                row.number,
            )
        else:
            found.add(ids[-MAX_CONTEXT_TOKENS:])
    return sorted(found)
