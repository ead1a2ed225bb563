"""One lane for each connection, so that a connection which asks for much holds up nobody but itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from steering_server.errors import ConnectionFullError

_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Lane:
    places: asyncio.Semaphore
    users: int = 0


class Lanes:
    """Places for each connection, given in the order in which they are asked for; belongs to one event loop."""

    def __init__(self, width: int, most: int | None = None, what: str = "calls") -> None:
        """Takes the bounds.

        Args:
            width: Places of a connection.
            most: How many of it may have a place or wait for one; None means any number.
            what: What has places, in the plural; for messages.
        """
        self._width = width
        self._most = most
        self._what = what
        self._lanes: dict[str, _Lane] = {}

    @property
    def connections(self) -> int:
        """How many connections have a place, or wait for one."""
        return len(self._lanes)

    @asynccontextmanager
    async def place(self, connection: str) -> AsyncIterator[None]:
        """Waits for a place and holds it.

        Raises:
            ConnectionFullError: As many of the connection as may are here already.
        """
        lane = self._lanes.setdefault(connection, _Lane(asyncio.Semaphore(self._width)))
        if self._most is not None and lane.users >= self._most:
            raise ConnectionFullError(self._most, _RETRY_SECONDS, self._what)
        lane.users += 1
        try:
            async with lane.places:
                yield
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[connection]
