"""Requests as they come in: bytes, of which some are no request.

gRPC decodes requests by itself before anyone can look at them, and answers what it can't decode with UNKNOWN; so
every handler takes bytes, and they are decoded here. They are read from the context: the iterator that gRPC gives
as well is an asynchronous generator, which would have to be closed each time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from steering_server.rpc.status import abort, status_of
from steering_spec import InvalidRequestError, Violation
from steering_spec.limits import MAX_REQUEST_BYTES

# In quotes: this class is generic in the type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Decode: TypeAlias = Callable[[bytes], Message]

# Silent calls are in the way of others of their connection; the largest file comes in this time over a slow line.
_READ_SECONDS = 300.0
# gRPC itself ends a call whose message is too large. All it tells us is that there is none, and then, by cancelling
# the call, that it is over.
_END_SECONDS = 0.05


@dataclass(slots=True)
class Ending:
    """How a call ends: with this status, or well where there is none.

    It is told once the error is no longer being handled. gRPC keeps the exception that `abort` raises for as long as
    the garbage collector lets it, and with it the error, were that its context, and the whole request.
    """

    status: status_pb2.Status | None = None

    async def tell(self, context: Context) -> None:
        """Ends a call that has failed, by gRPC's own `grpc.aio.AbortError`; one that ended well it leaves alone."""
        if self.status is not None:
            await abort(context, self.status)


async def first_message(context: Context) -> bytes:
    """The request of a method that takes one; what comes after it is not read.

    Raises:
        InvalidRequestError: There is none, or none that came in time.
    """
    try:
        # Not `wait_for`, which swallows gRPC's word that the call is over.
        async with asyncio.timeout(_READ_SECONDS):
            data = await context.read()
    except TimeoutError:
        text = f"no request came within {_READ_SECONDS:g} s"
        raise InvalidRequestError([Violation("", text)]) from None
    if not isinstance(data, bytes):  # `grpc.aio.EOF`
        await asyncio.sleep(_END_SECONDS)
        raise InvalidRequestError([Violation("", "the call has no request; this method takes one message")])
    return data


def decoded(data: bytes, decode: Decode, most: int) -> Message:
    """A request out of its bytes.

    Raises:
        InvalidRequestError: They are more than `most`, or no message of the method.
    """
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


def decoding(handler: Any) -> Any:
    """A handler of another library, such as that of the health service, with its requests decoded here."""
    decode, encode = handler.request_deserializer, handler.response_serializer

    async def one(_requests: object, context: Context) -> Message | None:
        response: Message | None = None
        with _catching_the_invalid() as ending:
            request = decoded(await first_message(context), decode, MAX_REQUEST_BYTES)
            response = await handler.unary_unary(request, context)
        await ending.tell(context)
        return response

    async def many(_requests: object, context: Context) -> None:
        with _catching_the_invalid() as ending:
            await write(context)
        await ending.tell(context)

    async def write(context: Context) -> None:
        if handler.request_streaming:
            responses = handler.stream_stream(_all(context, decode), context)
        else:
            request = decoded(await first_message(context), decode, MAX_REQUEST_BYTES)
            responses = handler.unary_stream(request, context)
        if not isinstance(responses, AsyncGenerator):  # a method that writes them itself
            await responses
            return
        async with aclosing(responses):
            async for response in responses:
                await context.write(response)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(many, response_serializer=encode)
    return grpc.stream_unary_rpc_method_handler(one, response_serializer=encode)


async def _all(context: Context, decode: Decode) -> AsyncIterator[Message]:
    while isinstance(data := await context.read(), bytes):
        yield decoded(data, decode, MAX_REQUEST_BYTES)


@contextmanager
def _catching_the_invalid() -> Iterator[Ending]:
    ending = Ending()
    try:
        yield ending
    except InvalidRequestError as error:
        ending.status = status_of(error, uuid.uuid4().hex)
