"""Descriptions of what a server holds, its model and its vectors, and of the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from steering_spec.facts import ModelFacts
from steering_spec.naming import VectorRef


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
    """A loaded vector, as ListVectors describes it.

    Attributes:
        name: `vectors/{id}`; of a version that is not the current one of its name, `vectors/{id}@{sha256}`.
        sha256: Digest of the file.
        description: One line for people.
        model: Model that it was made for, as in the file.
        layers: Blocks with a direction, ascending.
        hidden_size: Width of the residual stream.
        method: How the direction was made.
        context_count: Recorded pivot contexts.
        min_match_tokens: Shortest context match in tokens that the file recommends; 0 without contexts.
        metadata: The rest of the file's metadata, as JSON texts.
        probes: Linear probes, ascending by block.
        centroids: Centroids of pivot states, ascending by block.
        running_requests: Requests that use this version now.
        memory_bytes: Memory that it takes.
    """

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
    running_requests: int = 0
    memory_bytes: int = 0

    @property
    def current(self) -> bool:
        """Whether the plain name means this version."""
        return "@" not in self.name

    @property
    def pinned_name(self) -> str:
        """`vectors/{id}@{sha256}`, which means this version whatever is current."""
        return VectorRef(VectorRef.parse(self.name).id, self.sha256).name


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A running server: its load now, and its counts since it started.

    Attributes:
        versions: Versions by name, such as `torch`.
        started: When it started, in UTC.
        uptime_seconds: For how long it has been running.
        serving: Whether its health is SERVING.
        device: Where the model is.
        running_completions: Decoded now.
        queued_requests: Prompts that wait for the engine.
        unfinished_completions: Accepted and not finished.
        unfinished_limit: Most unfinished completions.
        cache_page_tokens: Tokens of one page of the KV cache.
        cache_pages: Pages of the KV cache.
        used_cache_pages: Pages in use; those only kept for sharing are not counted.
        generated_tokens: Tokens generated, those of cancelled requests included.
        steered_rows: Rows at which a rule acted.
        vectors: Loaded vectors, all versions counted.
        vector_memory_bytes: Memory that loaded vectors take.
        vector_memory_limit_bytes: Most memory that they may take.
        used_vector_rows: Rows in use of the vector table's fullest block.
        vector_rows: Rows that each block of the vector table has for vectors.
    """

    versions: Mapping[str, str]
    started: datetime
    uptime_seconds: float
    serving: bool
    device: str
    running_completions: int
    queued_requests: int
    unfinished_completions: int
    unfinished_limit: int
    cache_page_tokens: int
    cache_pages: int
    used_cache_pages: int
    generated_tokens: int
    steered_rows: int
    vectors: int
    vector_memory_bytes: int
    vector_memory_limit_bytes: int
    used_vector_rows: int
    vector_rows: int
