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

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for one request.

        Raises:
            QueueFullError: All places are taken.
        """
        if self._held >= self._limit:
            raise QueueFullError(self._limit)
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
