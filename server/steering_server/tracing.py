"""Spans of calls, for whoever collects them: what the server needs of tracing, without the packages that do it.

`open_telemetry` does it, and is imported only where tracing is asked for: its packages are optional.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from steering_server.config import ServerConfig
from steering_server.errors import StartError

if TYPE_CHECKING:
    from steering_server.open_telemetry import OpenTelemetry


class CallSpan(Protocol):
    """The span of one call."""

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, in hexadecimal; empty where it is not sampled."""

    def end(self, facts: Mapping[str, Any]) -> None:
        """The call has ended; `facts` are those of its record in the log."""


class Tracing(Protocol):
    """Makes spans."""

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
        """A call has come, as a part of the trace that its metadata names, if they name one."""

    def close(self) -> None:
        """Sends what has not been sent; blocks for two seconds where nobody takes it."""


def tracing_of(config: ServerConfig) -> Tracing | None:
    """What makes spans, where the configuration asks for them.

    Raises:
        StartError: The packages are missing, or the variables of OpenTelemetry are wrong.
    """
    return _open_telemetry().from_environment() if config.tracing else None


def check_tracing(config: ServerConfig) -> None:
    """Whether `tracing_of` finds its packages.

    Raises:
        StartError: They are missing.
    """
    if config.tracing:
        _open_telemetry()


def _open_telemetry() -> type[OpenTelemetry]:
    try:
        from steering_server.open_telemetry import OpenTelemetry  # noqa: PLC0415 -- packages that may be missing
    except ModuleNotFoundError as error:
        raise StartError(f"--tracing: {error}; install pivotal-steering[otel]") from error
    return OpenTelemetry
