"""Requests as they come in: bytes, of which some are no request.

gRPC decodes requests by itself before anyone can look at them, and answers what it can't decode with UNKNOWN; so
every handler takes bytes, and they are decoded here.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from steering_server.rpc.status import abort, status_of
from steering_spec import InvalidRequestError, Violation
from steering_spec.limits import MAX_REQUEST_BYTES

# In quotes: this class is generic in the type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Requests: TypeAlias = AsyncIterator[bytes]
Decode: TypeAlias = Callable[[bytes], Message]


async def first_message(requests: Requests) -> bytes:
    """The request of a method that takes one; what comes after it is not read.

    Raises:
        InvalidRequestError: There is none.
    """
    async for data in requests:
        return data
    raise InvalidRequestError([Violation("", "the call has no request; this method takes one message")])


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

    async def one(requests: Requests, context: Context) -> Message | None:
        async with _refusing_the_invalid(context):
            request = decoded(await first_message(requests), decode, MAX_REQUEST_BYTES)
            response: Message = await handler.unary_unary(request, context)
            return response
        return None  # never reached: an invalid request has been refused

    async def many(requests: Requests, context: Context) -> None:
        async with _refusing_the_invalid(context):
            if handler.request_streaming:
                responses = handler.stream_stream(_all(requests, decode), context)
            else:
                request = decoded(await first_message(requests), decode, MAX_REQUEST_BYTES)
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


async def _all(requests: Requests, decode: Decode) -> AsyncIterator[Message]:
    async for data in requests:
        yield decoded(data, decode, MAX_REQUEST_BYTES)


@asynccontextmanager
async def _refusing_the_invalid(context: Context) -> AsyncIterator[None]:
    refused: InvalidRequestError | None = None
    try:
        yield
    except InvalidRequestError as error:
        refused = error
    if refused is not None:
        await abort(context, status_of(refused, uuid.uuid4().hex))
