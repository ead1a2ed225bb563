"""Running completions as callers iterate over them, in both clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from steering_client.errors import CallCancelledError, steering_errors
from steering_client.generation import StreamEvent, StreamReader
from steering_spec import Completion, StreamDelta

if TYPE_CHECKING:
    from grpc import _CallIterator as CallIterator  # a name of the type stubs; gRPC itself has none


class _Stream:
    """What the streams of both clients are."""

    def __init__(self, cancel: Callable[[], object], completion_count: int) -> None:
        self._cancel = cancel
        self._reader = StreamReader(completion_count)
        self._closed = False

    @property
    def completion(self) -> Completion:
        """The whole completion of a stream that has one, once the deltas have come to their end."""
        return self._reader.completion

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All whole completions, in order, once the deltas have come to their end."""
        return self._reader.completions

    def close(self) -> None:
        """Stops decoding, if it still runs; the deltas end here."""
        self._closed = True
        self._cancel()


class CompletionStream(_Stream):
    """A running completion, or several: iterate over the deltas, then take `completion` or `completions`.

    Use it as a context manager, or `close` it, from any thread, to stop decoding early.
    """

    def __init__(self, call: CallIterator[StreamEvent], completion_count: int) -> None:
        """Takes the running call, which makes so many completions."""
        super().__init__(call.cancel, completion_count)
        self._events = call

    def __iter__(self) -> Iterator[StreamDelta]:
        return self

    def __next__(self) -> StreamDelta:
        while not self._closed:
            try:
                with steering_errors():
                    event = next(self._events)
            except CallCancelledError:
                if self._closed:  # by another thread, while this one waited
                    break
                raise
            if (delta := self._reader.read(event)) is not None:
                return delta
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncCompletionStream(_Stream):
    """A running completion, or several: iterate over the deltas, then take `completion` or `completions`.

    Use it as an async context manager, or `close` it, from any task, to stop decoding early.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[bytes, StreamEvent], completion_count: int) -> None:
        """Takes the running call, which makes so many completions."""
        super().__init__(call.cancel, completion_count)
        self._events = aiter(call)

    def __aiter__(self) -> AsyncIterator[StreamDelta]:
        return self

    async def __anext__(self) -> StreamDelta:
        while not self._closed:
            try:
                with steering_errors():
                    event = await anext(self._events)
            except CallCancelledError:
                if self._closed:  # by another task, while this one waited
                    break
                raise
            if (delta := self._reader.read(event)) is not None:
                return delta
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
