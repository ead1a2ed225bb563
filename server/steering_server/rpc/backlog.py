"""The bounds on unfinished requests: of all connections together, and of each.

gRPC's own `maximum_concurrent_rpcs` would refuse health checks too, so the services count for themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from steering_server.errors import ConnectionFullError, QueueFullError

LEAST_RETRY_SECONDS = 0.1
MOST_RETRY_SECONDS = 60.0
_FIRST_GUESS_SECONDS = 1.0  # how long a place is held, before any has been given back
_MEMORY = 0.1  # the share of the newest place in the mean


class Backlog:
    """Counts unfinished completions, decoding or waiting, and refuses those above a limit."""

    def __init__(
        self,
        limit: int,
        connection_limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the bounds.

        Args:
            limit: Places there are.
            connection_limit: Places that one connection may hold; None means all.
            clock: Tells the seconds; tests bring their own.
        """
        self._limit = limit
        self._connection_limit = min(connection_limit or limit, limit)
        self._clock = clock
        self._held = 0
        self._by_connection: Counter[str] = Counter()
        self._mean_seconds: float | None = None
        self._taken_at = 0.0  # the sum over all places

    @property
    def limit(self) -> int:
        """How many places there are."""
        return self._limit

    @property
    def connection_limit(self) -> int:
        """How many of them one connection may hold."""
        return self._connection_limit

    @property
    def held(self) -> int:
        """How many of them are taken."""
        return self._held

    @contextmanager
    def place(self, connection: str, completions: int = 1) -> Iterator[None]:
        """Holds a place for each completion of a request; one with more of them than there are places takes all.

        Args:
            connection: What tells the caller's connection from others.
            completions: How many completions the request makes.

        Raises:
            QueueFullError: Too few places are free.
            ConnectionFullError: The connection would hold more places than it may.
        """
        wanted = min(completions, self._connection_limit)
        if (lacking := self._held + wanted - self._limit) > 0:
            raise QueueFullError(self._limit, self._wait_for(lacking, self._held))
        mine = self._by_connection[connection]
        if (lacking := mine + wanted - self._connection_limit) > 0:
            raise ConnectionFullError(self._connection_limit, self._wait_for(lacking, mine))
        began = self._clock()
        self._change(connection, wanted, began)
        try:
            yield
        finally:
            self._change(connection, -wanted, began)
            self._learn(self._clock() - began)

    def _change(self, connection: str, places: int, began: float) -> None:
        self._held += places
        self._taken_at += places * began
        self._by_connection[connection] += places
        if not self._by_connection[connection]:
            del self._by_connection[connection]

    def _learn(self, seconds: float) -> None:
        if self._mean_seconds is None:
            self._mean_seconds = seconds
        else:
            self._mean_seconds += _MEMORY * (seconds - self._mean_seconds)

    def _wait_for(self, lacking: int, held: int) -> float:
        """Seconds until so many of the held places are free again.

        Little's law: places that are held for W seconds on average come free at a rate of `held` / W. Where those
        of now have been held for longer than that already, their own age tells W better than the past does.
        """
        mean = _FIRST_GUESS_SECONDS if self._mean_seconds is None else self._mean_seconds
        age = self._clock() - self._taken_at / self._held
        return min(max(max(mean, age) * lacking / held, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS)
