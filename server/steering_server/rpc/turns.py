"""Who is next: requests enter the engine in fair order over the connections they come from.

The engine itself takes requests in the order in which they come, so whatever is handed to it is out of any order
that would be fairer. Therefore it is handed only what it can run now, and a little more, so that no row of its
batch stays empty between one completion's end and the next one's begin. The rest waits here: first come, first
served within a connection; over connections the one goes first that has had the least since it began to wait
(start-time fair queueing, Goyal et al. 1996, with the completions of a request as its cost). A connection with a
thousand requests thus holds the single one of another up for one turn, not for a thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

from steering_engine.engine.base import EngineRequest, EngineStats
from steering_server.logs import note

_AHEAD = 8  # one more for each so many rows is handed to the engine
# The engine's cache may come free without a word to us, when a cancelled request's pages do.
_LOOK_AGAIN_SECONDS = 0.02


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request on its way: its rows in the engine's batch, the tokens of its prompt, and the word that it may go."""

    connection: str
    rows: int
    tokens: int
    go: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Line:
    """The waiting requests of one connection, in order, and what the connection has had, in rows."""

    had: int
    waiting: dict[_Waiter, None] = field(default_factory=dict)


class Turns:
    """Lets requests into the engine; belongs to one event loop."""

    def __init__(self, rows: int, stats: Callable[[], EngineStats]) -> None:
        """Takes how many completions the engine decodes at once, and what tells its load."""
        self._most_rows = rows + max(1, rows // _AHEAD)
        self._stats = stats
        self._rows = 0
        self._inside: dict[_Waiter, None] = {}
        self._lines: dict[str, _Line] = {}
        self._had: dict[str, int] = {}  # of connections without a line, where it is more than `_now`
        self._now = 0  # what the connection had that went last, before it went
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn; callable from any thread."""
        return sum(len(line.waiting) for line in list(self._lines.values()))

    @asynccontextmanager
    async def turn(self, connection: str, requests: Sequence[EngineRequest]) -> AsyncIterator[None]:
        """Waits until the completions of one prompt may enter the engine; they leave it at the end of the block.

        Cancelling the wait gives the turn up.
        """
        began = asyncio.get_running_loop().time()
        go = asyncio.get_running_loop().create_future()
        waiter = _Waiter(connection, len(requests), len(requests[0].prompt_ids), go)
        self._line(connection).waiting[waiter] = None
        try:
            self._let_in()
            if not go.done():
                await go
            note(queue_seconds=round(asyncio.get_running_loop().time() - began, 6))
            yield
        finally:
            self._leave(waiter)

    def _line(self, connection: str) -> _Line:
        if connection not in self._lines:
            # Who comes back has not saved anything up by having been away.
            self._lines[connection] = _Line(max(self._now, self._had.pop(connection, 0)))
        return self._lines[connection]

    def _let_in(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._lines and self._rows < self._most_rows:
            line = min(self._lines.values(), key=lambda one: one.had)
            waiter = next(iter(line.waiting))
            if not self._has_room_for(waiter):
                self._timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN_SECONDS, self._let_in)
                return
            self._now = line.had
            line.had += waiter.rows
            self._step_out(line, waiter)
            self._inside[waiter] = None
            self._rows += waiter.rows
            if not waiter.go.done():  # one that is being cancelled leaves by itself
                waiter.go.set_result(None)

    def _has_room_for(self, waiter: _Waiter) -> bool:
        """Whether the engine's cache can take the prompt, beside those that the engine has and has not begun.

        An engine that holds nothing back takes one in any case: it knows best what it can share.
        """
        stats = self._stats()
        not_begun = list(islice(reversed(self._inside), stats.waiting_requests))
        needed = waiter.tokens + sum(one.tokens for one in not_begun)
        return not not_begun or needed <= stats.free_cache_tokens

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._inside:
            del self._inside[waiter]
            self._rows -= waiter.rows
        else:
            self._step_out(self._lines[waiter.connection], waiter)
        self._let_in()

    def _step_out(self, line: _Line, waiter: _Waiter) -> None:
        del line.waiting[waiter]
        if not line.waiting:
            del self._lines[waiter.connection]
            self._had[waiter.connection] = line.had
            self._had = {name: had for name, had in self._had.items() if had > self._now}
