"""What admission is told of a server: facts of its model and of its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from steering_spec.naming import VectorRef


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What admission needs to know of the served model."""

    name: str
    layer_count: int
    vocab_size: int
    max_context_tokens: int
    default_max_tokens: int
    chat_supported: bool


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What admission needs to know of a loaded vector.

    Attributes:
        sha256: Digest of the file.
        layers: Blocks with a direction.
        context_count: Recorded pivot contexts.
        probes: Blocks with a probe, each with the file's threshold, or None where it has none.
        centroids: Blocks with centroids, each with the file's least cosine, or None where it has none.
    """

    sha256: str
    layers: tuple[int, ...]
    context_count: int
    probes: Mapping[int, float | None] = field(default_factory=dict)
    centroids: Mapping[int, float | None] = field(default_factory=dict)


FindVector: TypeAlias = Callable[[VectorRef], VectorFacts | None]
"""Looks a vector up: the version of the pin, or without one the current version; None when it is not loaded."""
