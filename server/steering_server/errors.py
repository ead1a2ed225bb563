"""Errors of the server.

    ServerError
    ├── StartError             the server can't start as it was told to; one line says why
    │   └── ConfigError            its settings are wrong (in `config`)
    ├── NoTokenError           a call without a token, where one is needed
    ├── UnknownTokenError      a call with a token that nobody was given
    ├── MissingScopeError      a token that does not allow the call
    ├── QueueFullError         too many unfinished requests
    │   └── ConnectionFullError    too many of one connection
    ├── SlowReaderError        a stream's reader fell too far behind
    ├── ResponseTooLargeError  the response doesn't fit into one message
    └── DrainingError          the server is stopping and takes no new work

`rpc.status` says which gRPC status each gets.
"""

from __future__ import annotations

from collections.abc import Callable


class ServerError(Exception):
    """Base of all errors of the server."""


class StartError(ServerError):
    """The server can't start as it was told to; the message says why, in one line."""


class NoTokenError(ServerError):
    """A call without a bearer token, where one is needed."""

    def __init__(self) -> None:
        super().__init__("this server takes no call without a token; send `authorization: Bearer TOKEN`")


class UnknownTokenError(ServerError):
    """A call with a token that nobody was given."""

    def __init__(self) -> None:
        super().__init__("this server does not know the token")


class MissingScopeError(ServerError):
    """A token that does not allow the call."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the token does not allow this call, which needs the scope {scope}")


class QueueFullError(ServerError):
    """Too many unfinished requests; the caller may try again after `retry_seconds`."""

    def __init__(self, limit: int, retry_seconds: float) -> None:
        self.limit = limit
        self.retry_seconds = retry_seconds
        super().__init__(f"{self._told()}; try again in {retry_seconds:.1f} s")

    def _told(self) -> str:
        return f"{self.limit} completions are unfinished, which is the most this server takes"


class ConnectionFullError(QueueFullError):
    """Too many unfinished requests of one connection; others are let in."""

    def __init__(self, limit: int, retry_seconds: float, what: str = "completions") -> None:
        self._what = what
        super().__init__(limit, retry_seconds)

    def _told(self) -> str:
        return f"{self.limit} {self._what} of this connection are unfinished, which is the most it may have"


class SlowReaderError(ServerError):
    """A stream's reader fell too far behind, so its generation was ended."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the stream was read too slowly: {limit} deltas were waiting, so the generation was ended"
        )


class ResponseTooLargeError(ServerError):
    """The response doesn't fit into one message."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the response has {size} bytes, and a message at most {limit}; ask for less: a smaller page, fewer ids; "
            "of completions, stream them, or ask for fewer or shorter ones, no trace, or fewer top_logprobs"
        )


class DrainingError(ServerError):
    """The server is stopping and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is stopping and takes no new work")


def faults_of(*steps: Callable[[], object]) -> list[str]:
    """What is wrong with any of these steps, each of which may raise StartError."""
    faults = []
    for step in steps:
        try:
            step()
        except StartError as error:
            faults.append(str(error))
    return faults
