"""What a running server can be asked about itself at any moment, by name, meaning and value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from steering_engine.model import SteeredModel
from steering_server.rpc.backlog import Backlog
from steering_server.rpc.turns import Turns

Reading: TypeAlias = tuple[str, str, float]


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

    def model(self) -> dict[str, str]:
        """What is served."""
        info = self._model.info
        return {"model": info.facts.name, "architecture": info.architecture, "dtype": info.dtype}

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
        yield "steering_vectors", "Loaded vectors.", len(self._model.vectors.infos())
        yield "steering_serving", "1 while the server is healthy, else 0.", self._serving()
        if self._certificate_expiry is not None:
            yield (
                "steering_certificate_expiry_timestamp_seconds",
                "When the server's certificate expires, in seconds since 1970.",
                self._certificate_expiry(),
            )
