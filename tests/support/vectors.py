"""Vector files for tests: random directions for a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import save_vector
from steering_engine.vectors.schema import Probe, SteeringVector, VectorMetadata


def random_vector(
    loaded: LoadedModel,
    name: str,
    blocks: Sequence[int],
    *,
    seed: int = 0,
    strength: float = 4.0,
    contexts: Sequence[Sequence[int]] = (),
    min_match: int = 1,
    probes: Mapping[int, tuple[torch.Tensor, float]] | None = None,
    centroids: Mapping[int, torch.Tensor] | None = None,
    **metadata: Any,
) -> SteeringVector:
    """A vector with a random unit direction at each block.

    Args:
        loaded: The model that it is for.
        name: Its name.
        blocks: Blocks with a direction.
        seed: Other seeds give other directions.
        strength: Calibrated strength at block 0; each later block has 1 more.
        contexts: Recorded contexts.
        min_match: Shortest match of a context.
        probes: Weight `[hidden]` and bias by block; thresholds go into `probe_threshold={block: 0.5}`.
        centroids: Centroids `[k, hidden]` by block; the least cosines go into `centroid_min_cosine={block: 0.9}`.
        metadata: Fields of the metadata, in place of the defaults.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = {}
    for block in blocks:
        direction = torch.randn(loaded.hidden_size, generator=generator)
        directions[block] = direction / direction.norm()
    values: dict[str, Any] = {
        "schema": "steering.vector/1",
        "name": name,
        "description": "random direction",
        "model_id": "tiny",
        "model_config_digest": loaded.config_digest,
        "tokenizer_digest": loaded.tokenizer_digest,
        "hidden_size": loaded.hidden_size,
        "block_count": loaded.block_count,
        "method": "random",
        "calibrated_strength": {block: strength + block for block in blocks},
        "residual_norm": dict.fromkeys(blocks, 1.0),
        "context_min_match": min_match if contexts else 0,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "licence": "Apache-2.0",
        **metadata,
    }
    return SteeringVector(
        VectorMetadata.model_validate(values),
        directions,
        tuple(map(tuple, contexts)),
        {block: Probe(weight, bias) for block, (weight, bias) in (probes or {}).items()},
        dict(centroids or {}),
    )


def save_random_vector(
    folder: Path, loaded: LoadedModel, name: str, blocks: Sequence[int], **options: Any
) -> Path:
    """Writes a random vector as `folder/name.safetensors`."""
    path = folder / f"{name}.safetensors"
    save_vector(path, random_vector(loaded, name, blocks, **options))
    return path
