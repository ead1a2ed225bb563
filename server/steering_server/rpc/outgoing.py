"""Responses as they go out: bytes, of which there may be too many.

gRPC ends a call whose response is above its limit by itself, without a reason, and nothing here would learn of it; so
responses are serialized before gRPC gets them.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from steering_server.errors import ResponseTooLargeError
from steering_spec import limits


def encoded(response: Message, encode: Callable[[Message], bytes]) -> bytes:
    """The bytes of a response.

    Raises:
        ResponseTooLargeError: They are more than a message may have.
    """
    data = encode(response)
    if len(data) > limits.MAX_MESSAGE_BYTES:
        raise ResponseTooLargeError(len(data), limits.MAX_MESSAGE_BYTES)
    return data
