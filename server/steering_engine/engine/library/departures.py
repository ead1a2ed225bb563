"""Who wants to know when the engine's thread is done with requests that were cancelled or have failed.

A cancelled request may be in the forward that runs, and the library takes note of cancellations before the next one
only. Until then the request's steering is still read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Departure:
    """Requests that leave, by key, and what is called when all have left."""

    keys: tuple[str, ...]
    then: Callable[[], None]


class Departures:
    """Requests on their way out. Added from any thread, settled by the engine's."""

    def __init__(self) -> None:
        self._waiting: list[Departure] = []
        self._closed = False
        self._lock = threading.Lock()

    def add(self, keys: Sequence[str], then: Callable[[], None]) -> bool:
        """Takes note of requests that have been cancelled; False when the engine's thread has ended."""
        with self._lock:
            if not self._closed:
                self._waiting.append(Departure(tuple(keys), then))
            return not self._closed

    def waiting(self) -> list[Departure]:
        """All that are not settled."""
        with self._lock:
            return list(self._waiting)

    def settle(self, departures: Iterable[Departure], present: Sequence[Container[str]]) -> None:
        """Calls back for those of which no request is in any of the places."""
        for departure in departures:
            if not any(key in place for key in departure.keys for place in present):
                with self._lock:
                    self._waiting.remove(departure)
                departure.then()

    def close(self) -> None:
        """Calls back for all: the thread ends, and runs no forward any more."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, []
        for departure in left:
            departure.then()
