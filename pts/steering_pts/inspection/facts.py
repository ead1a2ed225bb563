"""The numbers of a vector file that follow from the file alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from steering_engine.vectors.schema import SteeringVector


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """A direction. Lengths are in residual units.

    Attributes:
        block: The block that it steers.
        strength: Length of a steering of strength 1.
        residual_norm: Mean length of the residual stream there.
        relative: Their ratio.
        reliability: Cosine between the directions of two halves of the pivots, None where it is not known.
    """

    block: int
    strength: float
    residual_norm: float
    relative: float
    reliability: float | None


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """A probe: its quality, and how its weight lies to the direction that steers at the same block, if there is one."""

    block: int
    auc: float | None
    threshold: float | None
    bias: float
    weight_norm: float
    cosine_to_direction: float | None


@dataclass(frozen=True, slots=True)
class CentroidFacts:
    """The centroids of a block: how many, how long, how alike, and from which cosine on they fire."""

    block: int
    count: int
    least_norm: float
    greatest_norm: float
    least_cosine_between: float | None
    min_cosine: float | None


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """A vector file in numbers; `cosines` is `[directions, directions]`, in the order of the blocks."""

    blocks: tuple[BlockFacts, ...]
    cosines: tuple[tuple[float, ...], ...]
    probes: tuple[ProbeFacts, ...]
    centroids: tuple[CentroidFacts, ...]
    contexts: int
    shortest_context: int
    longest_context: int


def facts_of(vector: SteeringVector) -> VectorFacts:
    """All numbers of a vector."""
    metadata = vector.metadata
    blocks = sorted(vector.directions)
    directions = torch.stack([vector.directions[block].double() for block in blocks])
    lengths = [len(context) for context in vector.contexts]
    return VectorFacts(
        blocks=tuple(
            BlockFacts(
                block=block,
                strength=metadata.calibrated_strength[block],
                residual_norm=metadata.residual_norm[block],
                relative=metadata.calibrated_strength[block] / metadata.residual_norm[block],
                reliability=metadata.split_half_cosine.get(block),
            )
            for block in blocks
        ),
        cosines=tuple(tuple(row) for row in _cosines(directions).tolist()),
        probes=tuple(_probe(vector, block) for block in sorted(vector.probes)),
        centroids=tuple(_centroids(vector, block) for block in sorted(vector.centroids)),
        contexts=len(lengths),
        shortest_context=min(lengths, default=0),
        longest_context=max(lengths, default=0),
    )


def metadata_rows(vector: SteeringVector) -> dict[str, Any]:
    """The metadata that are not about single blocks, as JSON values."""
    by_block = {
        *("calibrated_strength", "residual_norm", "probe_threshold", "probe_auc", "centroid_min_cosine"),
        "split_half_cosine",
    }
    fields: Mapping[str, Any] = vector.metadata.model_dump(mode="json", by_alias=True)
    return {name: value for name, value in fields.items() if name not in by_block}


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """Cosines between rows `[n, hidden]`, `[n, n]`."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    return torch.clamp(unit @ unit.T, -1, 1)


def _probe(vector: SteeringVector, block: int) -> ProbeFacts:
    probe, direction = vector.probes[block], vector.directions.get(block)
    weight = probe.weight.double()
    norm = float(weight.norm())
    cosine = None
    if direction is not None and norm > 0:
        cosine = float((weight @ direction.double()) / norm)
    return ProbeFacts(
        block=block,
        auc=vector.metadata.probe_auc.get(block),
        threshold=vector.metadata.probe_threshold.get(block),
        bias=probe.bias,
        weight_norm=norm,
        cosine_to_direction=cosine,
    )


def _centroids(vector: SteeringVector, block: int) -> CentroidFacts:
    centroids = vector.centroids[block].double()
    norms = centroids.norm(dim=1)
    return CentroidFacts(
        block=block,
        count=len(centroids),
        least_norm=float(norms.min()),
        greatest_norm=float(norms.max()),
        least_cosine_between=float(_cosines(centroids).min()) if len(centroids) > 1 else None,
        min_cosine=vector.metadata.centroid_min_cosine.get(block),
    )
