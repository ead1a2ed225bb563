"""Descriptions of what a server holds: its model and its vectors."""

from __future__ import annotations

from dataclasses import dataclass

from steering_spec.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model, as GetModel describes it."""

    facts: ModelFacts
    architecture: str
    hidden_size: int
    dtype: str
    config_digest: str
    tokenizer_digest: str


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """A direction at one block: its calibrated strength and the residual stream's mean norm, in residual units."""

    layer: int
    strength: float
    residual_norm: float


@dataclass(frozen=True, slots=True)
class VectorProbe:
    """A linear probe at one block: the file's own threshold and its area under the ROC curve, where it says."""

    layer: int
    threshold: float | None
    auc: float | None


@dataclass(frozen=True, slots=True)
class VectorCentroids:
    """The centroids of recorded pivot states at one block: how many, and the file's own least cosine, where it says."""

    layer: int
    count: int
    min_cosine: float | None


@dataclass(frozen=True, slots=True)
class VectorInfo:
    """A loaded vector, as ListVectors describes it."""

    name: str
    sha256: str
    description: str
    model: str
    layers: tuple[VectorLayer, ...]
    hidden_size: int
    method: str
    context_count: int
    min_match_tokens: int
    metadata: dict[str, str]
    probes: tuple[VectorProbe, ...] = ()
    centroids: tuple[VectorCentroids, ...] = ()
