"""What a running server can be asked about itself at any moment, by name, meaning and value."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.model import SteeredModel
from steering_server.rpc.backlog import Backlog
from steering_server.rpc.turns import Turns
from steering_spec import ServerStats

Reading: TypeAlias = tuple[str, str, float]

_PACKAGES = ("pivotal-steering", "torch", "transformers", "tokenizers", "safetensors", "grpcio", "protobuf")


class Readings:
    """Counts and levels of a server; may be asked from any thread."""

    def __init__(
        self,
        model: SteeredModel,
        backlog: Backlog,
        turns: Turns,
        serving: Callable[[], bool],
        certificate_expiry: Callable[[], float] | None,
    ) -> None:
        """Takes what is read.

        Args:
            model: The served model.
            backlog: The bound on its unfinished requests.
            turns: Those that wait to enter the engine.
            serving: Whether the server says that it is healthy.
            certificate_expiry: Gives the seconds since 1970 of when the certificate expires; None without TLS.
        """
        self._model = model
        self._backlog = backlog
        self._turns = turns
        self._serving = serving
        self._certificate_expiry = certificate_expiry
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._versions = {name: _version(name) for name in _PACKAGES}
        self._versions["python"] = platform.python_version()

    def model(self) -> dict[str, str]:
        """What is served."""
        info = self._model.info
        return {"model": info.facts.name, "architecture": info.architecture, "dtype": info.dtype}

    def stats(self) -> ServerStats:
        """The server as GetServerStats tells it."""
        stats, limits, vectors = self._model.stats(), self._model.limits, self._model.vectors
        memory, (used_rows, rows) = vectors.memory(), vectors.table_rows()
        pages, free = limits.cache_pages, stats.free_cache_tokens // PAGE_TOKENS
        return ServerStats(
            versions=self._versions,
            started=self._started,
            uptime_seconds=time.monotonic() - self._clock,
            serving=self._serving(),
            device=str(self._model.loaded.device),
            running_completions=stats.active_requests,
            queued_requests=stats.waiting_requests + self._turns.waiting,
            unfinished_completions=self._backlog.held,
            unfinished_limit=self._backlog.limit,
            cache_page_tokens=PAGE_TOKENS,
            cache_pages=pages,
            used_cache_pages=max(0, pages - free),
            generated_tokens=stats.generated_tokens,
            steered_rows=stats.steered_rows,
            vectors=vectors.count(),
            vector_memory_bytes=memory.used,
            vector_memory_limit_bytes=memory.limit,
            used_vector_rows=used_rows,
            vector_rows=rows,
        )

    def counts(self) -> Iterator[Reading]:
        """What only grows."""
        stats = self._model.stats()
        yield (
            "steering_generated_tokens",
            "Tokens generated, those of cancelled requests included.",
            stats.generated_tokens,
        )
        yield "steering_steered_rows", "Steered rows of all requests.", stats.steered_rows

    def levels(self) -> Iterator[Reading]:
        """What grows and falls."""
        stats = self._model.stats()
        yield "steering_active_requests", "Requests that are decoded now.", stats.active_requests
        waiting = stats.waiting_requests + self._turns.waiting
        yield "steering_waiting_requests", "Requests that wait for the engine.", waiting
        yield "steering_unfinished_requests", "Completions accepted and not finished.", self._backlog.held
        yield "steering_unfinished_requests_limit", "Most completions unfinished.", self._backlog.limit
        yield "steering_cache_tokens", "Tokens that the KV cache holds.", self._model.limits.cache_tokens
        yield (
            "steering_cache_free_tokens",
            "Tokens of the KV cache that are free or kept for sharing only.",
            stats.free_cache_tokens,
        )
        yield "steering_vectors", "Loaded vectors, all versions.", self._model.vectors.count()
        memory = self._model.vectors.memory()
        yield "steering_vector_memory_bytes", "Memory that loaded vectors take.", memory.used
        yield "steering_vector_memory_limit_bytes", "Most memory that they may take.", memory.limit
        yield "steering_serving", "1 while the server is healthy, else 0.", self._serving()
        if self._certificate_expiry is not None:
            yield (
                "steering_certificate_expiry_timestamp_seconds",
                "When the server's certificate expires, in seconds since 1970.",
                self._certificate_expiry(),
            )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
