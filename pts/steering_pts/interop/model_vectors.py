"""Vectors of other programs as vector files of ours, which the server can load.

A vector file says what model it is for, and how long the model's residual stream is; a foreign file says neither, so
the model is loaded and asked.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from steering_engine.alias import shareable_name
from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.vectors.schema import SteeringVector, VectorMetadata
from steering_pts.errors import InteropError

_SAMPLE: Final = (
    "The river runs past the old mill and under two bridges before it reaches the town. On market days people come "
    "from the villages around, some on foot and some with carts, and by noon the square is full. If 7 baskets hold 12 "
    "apples each, there are 84 apples in all; a third of them are sold before the rain begins. Afterwards it is quiet."
)
"""What the residual stream's length is measured on where nothing else is given."""
_ROWS_PER_FORWARD: Final = 4096


def foreign_vector(
    source: str,
    loaded: LoadedModel,
    directions: Mapping[int, torch.Tensor],
    *,
    name: str,
    method: str,
    description: str,
    licence: str,
    contexts: Sequence[Sequence[int]] = (),
    min_match: int = 0,
    event_count: int = 0,
) -> SteeringVector:
    """Directions of another program as a vector; strength 1 adds each as long as it came.

    Args:
        source: The file, for messages.
        loaded: The model that they are for.
        directions: By block, `[hidden]` of any float type, in residual units.
        name: Name of the vector.
        method: What made it.
        description: What it is.
        licence: SPDX identifier; empty where that is not known.
        contexts: Ids before the decisions that it is for, if any are known.
        min_match: How many ids of a context must match.
        event_count: Pivots that it was made from.

    Raises:
        InteropError: The directions don't fit the model; the error holds everything that is wrong.
    """
    check_directions(source, loaded, directions)
    norms = {block: float(vector.double().norm()) for block, vector in directions.items()}
    metadata = VectorMetadata.model_validate(
        {
            "schema": "steering.vector/1",
            "name": name,
            "description": description,
            "model_id": shareable_name(loaded.source),
            "model_config_digest": loaded.config_digest,
            "tokenizer_digest": loaded.tokenizer_digest,
            "hidden_size": loaded.hidden_size,
            "block_count": loaded.block_count,
            "method": method,
            "calibrated_strength": norms,
            "residual_norm": residual_norms(loaded, sorted(directions), contexts),
            "context_min_match": min_match if contexts else 0,
            "event_count": event_count,
            "created": dt.datetime.now(dt.UTC).replace(microsecond=0),
            "licence": licence,
        }
    )
    units = {block: (vector.double() / norms[block]).float() for block, vector in sorted(directions.items())}
    return SteeringVector(metadata, units, tuple(tuple(context) for context in contexts))


def check_directions(source: str, loaded: LoadedModel, directions: Mapping[int, torch.Tensor]) -> None:
    """Sees that directions fit a model.

    Raises:
        InteropError: They don't; the error holds everything that is wrong.
    """
    faults = [] if directions else ["it holds no direction"]
    for block, vector in sorted(directions.items()):
        if not 0 <= block < loaded.block_count:
            faults.append(f"block {block}: the model has blocks 0 to {loaded.block_count - 1}")
        if vector.shape != (loaded.hidden_size,):
            faults.append(
                f"block {block}: shape {list(vector.shape)}; the model's residual stream has width {loaded.hidden_size}"
            )
        elif not torch.isfinite(vector).all():
            faults.append(f"block {block}: it has a value that is not finite")
        elif not vector.any():
            faults.append(f"block {block}: it is zero everywhere, so it has no direction")
    if faults:
        raise InteropError(source, faults)


@torch.inference_mode()
def residual_norms(
    loaded: LoadedModel, blocks: Sequence[int], contexts: Sequence[Sequence[int]] = ()
) -> dict[int, float]:
    """Mean norm of resid_post at blocks: at the last row of each context, or over the rows of a plain English text.

    The first row of the text is left out: in many models it is far longer than all others.
    """
    if contexts:
        batches = [list(context) for context in contexts]
        last_only = True
    else:
        batches, last_only = [loaded.tokenizer(_SAMPLE, add_special_tokens=True)["input_ids"]], False
    sums, rows = dict.fromkeys(blocks, 0.0), 0
    states: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            states[block] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    modules = find_blocks(loaded.model)
    handles = [modules[block].register_forward_hook(keep(block)) for block in blocks]
    try:
        for ids in batches:
            cut = ids[: min(loaded.context_tokens, _ROWS_PER_FORWARD)]
            loaded.model(
                input_ids=torch.tensor([cut], device=loaded.device), use_cache=False, logits_to_keep=1
            )
            start = len(cut) - 1 if last_only or len(cut) == 1 else 1
            for block in blocks:
                sums[block] += float(states[block][start:].double().norm(dim=-1).sum())
            rows += len(cut) - start
    finally:
        for handle in handles:
            handle.remove()
    return {block: total / rows for block, total in sums.items()}


def vector_name(text: str) -> str:
    """A text as the name of a vector: small letters, digits and dashes, beginning with a letter, 63 at most."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"vector-{name}".rstrip("-")
    return name[:63].rstrip("-")


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it where it is taken; taken from now on."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name[:58]}-{number}"
    taken.add(free)
    return free
