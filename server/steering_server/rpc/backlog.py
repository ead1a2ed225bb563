"""The bound on unfinished requests.

gRPC's own `maximum_concurrent_rpcs` would refuse health checks too, so the services count for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from steering_server.errors import QueueFullError


class Backlog:
    """Counts unfinished requests, decoding or waiting, and refuses those above a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def limit(self) -> int:
        """How many places there are."""
        return self._limit

    @property
    def held(self) -> int:
        """How many of them are taken."""
        return self._held

    @contextmanager
    def place(self, completions: int = 1) -> Iterator[None]:
        """Holds a place for each completion of a request; one with more of them than there are places takes all.

        Raises:
            QueueFullError: Too few places are free.
        """
        wanted = min(completions, self._limit)
        if self._held + wanted > self._limit:
            raise QueueFullError(self._limit)
        self._held += wanted
        try:
            yield
        finally:
            self._held -= wanted
