"""Explicit limits of an engine.

The library's own defaults size the cache by the machine's memory, which takes most of it, and minutes on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steering_engine.errors import ModelError
from steering_engine.steering.table import DEFAULT_CAPACITY

PAGE_TOKENS = 16
"""Tokens of one cache page; prefixes are shared in whole pages."""

DEFAULT_VECTOR_MEMORY_BYTES = 1 << 30

_DEFAULT_VECTOR_TABLE_BYTES = 1 << 30
_LEAST_CONTEXT = 4  # what a server's first request, which warms up, needs
_LEAST_CACHE_TOKENS = 4 * PAGE_TOKENS  # what the trial at load needs


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine.

    Attributes:
        max_concurrent_requests: Requests decoded together; more wait in the engine.
        max_batch_tokens: Rows of one forward; longer prompts are prefilled in chunks.
        max_context_tokens: Prompt plus generated tokens of one request; 0 means what the model allows, at most
            `cache_tokens`.
        cache_tokens: Tokens that the KV cache holds, over all requests.
        default_max_tokens: Tokens generated when a request does not say how many.
        deterministic: A seeded request gives the same tokens with bit-equal log-probabilities alone and in any batch.
            None means where it is possible: on a CPU in float32.
        cuda_graphs: Forwards of few rows (decoding) are captured once and replayed. None means where it is possible: on
            a CUDA device in bfloat16 or float16.
        offload_gib: Pinned memory of the host, in GiB, for the cached rows of requests that give way to others; without
            it they are computed again. CUDA devices only.
        vector_table_bytes: Memory of the device for what loaded vectors are made of; a CPU's is taken as vectors are
            loaded. None means 1 GiB, and at most 16,384 rows of each block.
        vector_memory_bytes: Most memory that loaded vectors take in all: their tensors, their rows on the device, and
            their contexts.
    """

    max_concurrent_requests: int = 128
    max_batch_tokens: int = 1024
    max_context_tokens: int = 0
    cache_tokens: int = 32_768
    default_max_tokens: int = 256
    deterministic: bool | None = None
    cuda_graphs: bool | None = None
    offload_gib: float = 0.0
    vector_table_bytes: int | None = None
    vector_memory_bytes: int = DEFAULT_VECTOR_MEMORY_BYTES

    def __post_init__(self) -> None:
        counts = ("max_concurrent_requests", "max_batch_tokens", "cache_tokens", "default_max_tokens")
        for name in (*counts, "vector_memory_bytes"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.cache_tokens < _LEAST_CACHE_TOKENS:
            raise ModelError(f"cache_tokens is {self.cache_tokens}; expected at least {_LEAST_CACHE_TOKENS}")
        if not 0 <= self.offload_gib < math.inf:
            raise ModelError(f"offload_gib is {self.offload_gib}; expected 0 (none) or more")
        if self.max_context_tokens < 0 or 0 < self.max_context_tokens < _LEAST_CONTEXT:
            raise ModelError(
                f"max_context_tokens is {self.max_context_tokens}; expected 0 (automatic) or at least {_LEAST_CONTEXT}"
            )
        if self.max_context_tokens > self.cache_tokens:
            raise ModelError(
                f"max_context_tokens ({self.max_context_tokens}) exceeds cache_tokens ({self.cache_tokens}): "
                "one request would not fit into the cache"
            )

    @property
    def cache_pages(self) -> int:
        """Pages that the KV cache has."""
        return -(-self.cache_tokens // PAGE_TOKENS)

    @property
    def batch_requests(self) -> int:
        """Completions that are decoded at once, at most: each has a row of a forward at least."""
        return min(self.max_concurrent_requests, self.max_batch_tokens)

    def context_tokens(self, model_context: int) -> int:
        """The longest prompt plus completion of one request on a model with the given context length."""
        # One page stays free: a request whose length is a multiple of the page needs the next page for its last row.
        room = self.cache_tokens - PAGE_TOKENS
        return min(self.max_context_tokens or model_context, model_context, room)

    def vector_rows(self, block_count: int, hidden_size: int) -> int:
        """Rows of each block's vector table, the zero row among them.

        Raises:
            ModelError: `vector_table_bytes` is too small for the model.
        """
        bytes_per_row = 4 * block_count * hidden_size
        if self.vector_table_bytes is None:
            return max(2, min(DEFAULT_CAPACITY, _DEFAULT_VECTOR_TABLE_BYTES // bytes_per_row))
        if self.vector_table_bytes < 2 * bytes_per_row:
            raise ModelError(
                f"vector_table_bytes is {self.vector_table_bytes}; expected at least {2 * bytes_per_row}, "
                f"two rows of each of the model's {block_count} blocks"
            )
        return self.vector_table_bytes // bytes_per_row
