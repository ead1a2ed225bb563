"""Around every call of the API: its token, its request id, its status when it fails, its record in log, metrics, trace.

An interceptor, so that no method can be written without it. Health and reflection are not of the API: their calls are
neither counted nor recorded, and only reflection needs a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from steering_server.errors import DrainingError, ServerError
from steering_server.logs import NOTES, REQUEST_ID, note
from steering_server.metrics import Metrics
from steering_server.rpc.access import Access
from steering_server.rpc.incoming import Context, Ending, decoded, decoding, first_message
from steering_server.rpc.lanes import Lanes
from steering_server.rpc.outgoing import encoded
from steering_server.rpc.status import abort, code_and_reason, status_of
from steering_server.tracing import CallSpan, Tracing
from steering_spec.limits import MAX_RECEIVED_BYTES, MAX_REQUEST_BYTES, MAX_REQUEST_ID_CHARACTERS

_log = logging.getLogger(__name__)

# In quotes: these classes are generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

_API = "/steering.v1."
_HEALTH = "/grpc.health."

READS = 8
"""Requests of one connection that are read at a time; gRPC gives each as a whole, however large."""


class Guard(grpc.aio.ServerInterceptor):
    """Guards the calls of `steering.v1`, counts them, and refuses them once the server is draining."""

    def __init__(
        self,
        access: Access | None = None,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Lets everybody in where no access is given, counts for itself where no metrics are; may trace."""
        self._access = access or Access()
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        self._reads = Lanes(READS)
        self._running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse_new_calls(self) -> None:
        """From now on new calls get UNAVAILABLE; running ones go on."""
        self._draining = True

    async def wait_until_idle(self) -> None:
        """Returns when no call is running."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wraps the handler of one call."""
        # Any: gRPC's types describe the handlers of its other, threaded server.
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith(_API):
            return self._of_others(handler, handler_call_details)
        # Whatever the method, its request is read as a stream of bytes. So nothing is read of a call that is refused
        # anyway, and bytes that can't be decoded are answered, as is a call without a request: gRPC itself ends the
        # former with UNKNOWN, and the latter never.
        encode: Any = handler.response_serializer or bytes

        async def unary(_requests: object, context: Context) -> bytes | None:
            response: bytes | None = None
            async with self._guarded(method, context) as ending:
                response = await answer(context)
            await ending.tell(context)
            return response

        async def answer(context: Context) -> bytes:
            async with self._accepted(method, context, handler) as request:
                return encoded(await handler.unary_unary(request, context), encode)

        # A coroutine that writes, where the services yield: gRPC does not close the generator of a cancelled
        # call (it is left to the garbage collector), and the request's row would stay busy for as long.
        async def stream(_requests: object, context: Context) -> None:
            async with self._guarded(method, context) as ending:
                await write(context)
            await ending.tell(context)

        async def write(context: Context) -> None:
            async with (
                self._accepted(method, context, handler) as request,
                aclosing(handler.unary_stream(request, context)) as messages,
            ):
                async for message in messages:
                    await context.write(encoded(message, encode))

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(unary)

    def _of_others(self, handler: Any, details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a method that is not of the API, or one that refuses the call."""
        if not details.method.startswith(_HEALTH):
            try:
                self._access.caller(details.method, details.invocation_metadata or ())
            except ServerError as error:
                return _refusing(error)
        others: Handler = decoding(handler)
        return others

    @asynccontextmanager
    async def _guarded(self, method: str, context: Context) -> AsyncIterator[Ending]:
        """Makes a status and a record of how a call ends.

        What the block raises is not raised again: whoever opens it tells the caller, once it is closed.
        """
        ending = Ending()
        began = time.perf_counter()
        REQUEST_ID.set(uuid.uuid4().hex)
        NOTES.set({})
        code, reason = grpc.StatusCode.CANCELLED, ""
        span = self._begin_span(method, context)
        try:
            yield ending
            code = grpc.StatusCode.OK
        except Exception as error:  # noqa: BLE001 -- the edge: whatever it is, the caller gets a status
            code, reason = code_and_reason(error)
            ending.status = status_of(error, REQUEST_ID.get())
            if code is grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", method)
            # Tasks and futures on its way hold the error, and it holds their frames: until the garbage collector
            # comes by, and with a model's objects in memory it seldom does, each would keep the whole request.
            traceback.clear_frames(error.__traceback__)
        finally:
            if code is grpc.StatusCode.CANCELLED and _is_late(context):
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            self._record(method, code, reason, time.perf_counter() - began, span)

    @asynccontextmanager
    async def _accepted(self, method: str, context: Context, handler: Any) -> AsyncIterator[Message]:
        """Lets a call in, or refuses it before its request is read.

        It counts as running once its request is there, so one that never asks holds no stop up.
        """
        caller = self._access.caller(method, context.invocation_metadata() or ())
        if caller := caller or _certificate_name(context):
            note(caller=caller)
        self._refuse_if_draining()
        async with AsyncExitStack() as place:
            await place.enter_async_context(self._reads.place(context.peer()))
            data = await first_message(context)
            # A larger one holds its place to the end: files wait for each other, and are as large.
            if len(data) <= MAX_REQUEST_BYTES:
                await place.aclose()
            with self._counted():
                self._refuse_if_draining()
                most = MAX_RECEIVED_BYTES if method.endswith("LoadVector") else MAX_REQUEST_BYTES
                request = decoded(data, handler.request_deserializer, most)
                del data
                _adopt_request_id(request)
                yield request

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise DrainingError

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _begin_span(self, method: str, context: Context) -> CallSpan | None:
        if self._tracing is None:
            return None
        span = self._tracing.begin(method, context.invocation_metadata() or ())
        note(trace_id=span.trace_id)
        return span

    def _record(
        self, method: str, code: grpc.StatusCode, reason: str, seconds: float, span: CallSpan | None
    ) -> None:
        self._metrics.call(method, code.name, seconds, reason)
        outcome = f"{code.name} {reason}".rstrip()
        facts = {"method": method, "code": code.name, "reason": reason, "seconds": round(seconds, 6)}
        notes = {name: fact for name, fact in {**facts, **(NOTES.get() or {})}.items() if fact != ""}
        _log.info("%s %s %.3f s", method, outcome, seconds, extra={"notes": notes})
        if span is not None:
            span.end({**notes, "request_id": REQUEST_ID.get()})


def _refusing(error: ServerError) -> Handler:
    """A handler that ends its call with an error."""
    status = status_of(error, uuid.uuid4().hex)

    async def refuse(_requests: object, context: Context) -> None:
        await abort(context, status)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _certificate_name(context: Context) -> str:
    """The name in the client's certificate; empty where it has shown none."""
    names = context.auth_context().get("x509_common_name", ())
    return next((name.decode("utf-8", "replace") for name in names), "")


def _is_late(context: Context) -> bool:
    left: float | None = context.time_remaining()
    return left is not None and left <= 0


def _adopt_request_id(request: Message) -> None:
    """Takes the caller's id, or writes the server's own into the request."""
    spec = getattr(request, "spec", None)
    if spec is None:
        return
    if spec.request_id:
        REQUEST_ID.set(spec.request_id[:MAX_REQUEST_ID_CHARACTERS])
    else:
        spec.request_id = REQUEST_ID.get()
