"""Around every call of the API: its token, its request id, its status when it fails, its record in log, metrics, trace.

An interceptor, so that no method can be written without it. The health service passes by, and reflection does where
its token is right.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from steering_server.errors import DrainingError, ServerError
from steering_server.logs import NOTES, REQUEST_ID, note
from steering_server.metrics import Metrics
from steering_server.rpc.access import Access
from steering_server.rpc.status import abort, code_and_reason, status_of
from steering_server.tracing import CallSpan, Tracing
from steering_spec import InvalidRequestError, Violation
from steering_spec.limits import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, MAX_REQUEST_ID_CHARACTERS

_log = logging.getLogger(__name__)

# In quotes: these classes are generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_API = "/steering.v1."
_HEALTH = "/grpc.health."


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
        if handler is None or method.startswith(_HEALTH):
            return handler  # type: ignore[no-any-return]
        if not method.startswith(_API):
            return self._if_allowed(handler, handler_call_details)
        # Requests are decoded inside the guard: gRPC answers bytes that it can't decode with UNKNOWN.
        decode, encode = handler.request_deserializer, handler.response_serializer

        async def unary(data: bytes, context: Context) -> Message | None:
            async with self._guarded(method, data, decode, context) as request:
                response: Message = await handler.unary_unary(request, context)
                return response
            return None  # never reached: a failed call has been aborted

        # A coroutine that writes, where the services yield: gRPC does not close the generator of a cancelled
        # call (it is left to the garbage collector), and the request's row would stay busy for as long.
        async def stream(data: bytes, context: Context) -> None:
            async with (
                self._guarded(method, data, decode, context) as request,
                aclosing(handler.unary_stream(request, context)) as messages,
            ):
                async for message in messages:
                    await context.write(message)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, response_serializer=encode)
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=encode)

    def _if_allowed(self, handler: Any, details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a call that is not of the API, or one that refuses the call."""
        try:
            self._access.caller(details.method, details.invocation_metadata or ())
        except ServerError as error:
            status = status_of(error, uuid.uuid4().hex)

            async def refuse(_requests: object, context: Context) -> None:
                await abort(context, status)

            return grpc.stream_stream_rpc_method_handler(refuse)
        return handler  # type: ignore[no-any-return]

    @asynccontextmanager
    async def _guarded(
        self, method: str, data: bytes, decode: Callable[[bytes], Message], context: Context
    ) -> AsyncIterator[Message]:
        began = time.perf_counter()
        REQUEST_ID.set(uuid.uuid4().hex)
        NOTES.set({})
        code, reason = grpc.StatusCode.CANCELLED, ""
        status: status_pb2.Status | None = None
        span = self._begin_span(method, context)
        with self._counted():
            try:
                # Before anything is read: who has no token shall cost nothing.
                caller = self._access.caller(method, context.invocation_metadata() or ())
                if caller := caller or _certificate_name(context):
                    note(caller=caller)
                if self._draining:
                    raise DrainingError  # noqa: TRY301 -- answered below like every other error
                most = MAX_MESSAGE_BYTES if method.endswith("LoadVector") else MAX_REQUEST_BYTES
                request = _decoded(data, decode, most)
                _adopt_request_id(request)
                yield request
                code = grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 -- the edge: whatever it is, the caller gets a status
                code, reason = code_and_reason(error)
                status = status_of(error, REQUEST_ID.get())
                if code is grpc.StatusCode.INTERNAL:
                    _log.exception("%s failed", method)
            finally:
                if code is grpc.StatusCode.CANCELLED and _is_late(context):
                    code = grpc.StatusCode.DEADLINE_EXCEEDED
                self._record(method, code, reason, time.perf_counter() - began, span)
            if status is not None:
                await abort(context, status)

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
        self._metrics.call(method, code.name, seconds)
        outcome = f"{code.name} {reason}".rstrip()
        facts = {"method": method, "code": code.name, "reason": reason, "seconds": round(seconds, 6)}
        notes = {name: fact for name, fact in {**facts, **(NOTES.get() or {})}.items() if fact != ""}
        _log.info("%s %s %.3f s", method, outcome, seconds, extra={"notes": notes})
        if span is not None:
            span.end({**notes, "request_id": REQUEST_ID.get()})


def _certificate_name(context: Context) -> str:
    """The name in the client's certificate; empty where it has shown none."""
    names = context.auth_context().get("x509_common_name", ())
    return next((name.decode("utf-8", "replace") for name in names), "")


def _is_late(context: Context) -> bool:
    left: float | None = context.time_remaining()
    return left is not None and left <= 0


def _decoded(data: bytes, decode: Callable[[bytes], Message], most: int) -> Message:
    if len(data) > most:  # protobuf takes seconds, and no other call is answered then
        raise InvalidRequestError(
            [Violation("", f"the request has {len(data)} bytes; at most {most} are read")]
        )
    try:
        return decode(data)
    except DecodeError:
        raise InvalidRequestError(
            [Violation("", "the request is not a protobuf message of this method")]
        ) from None


def _adopt_request_id(request: Message) -> None:
    """Takes the caller's id, or writes the server's own into the request."""
    spec = getattr(request, "spec", None)
    if spec is None:
        return
    if spec.request_id:
        REQUEST_ID.set(spec.request_id[:MAX_REQUEST_ID_CHARACTERS])
    else:
        spec.request_id = REQUEST_ID.get()
