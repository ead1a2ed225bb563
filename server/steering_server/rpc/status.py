"""Exceptions as gRPC statuses: one table, and one way to write a status.

A status is a google.rpc.Status with an ErrorInfo (a stable reason), a BadRequest that lists everything wrong
with the request, and a RetryInfo where trying again later makes sense. An exception that the table does not
name becomes INTERNAL with the request's id and nothing else; the server's log has the rest.
"""

from __future__ import annotations

from datetime import timedelta

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from steering_engine.errors import (
    EngineStoppedError,
    NotFiniteError,
    VectorExistsError,
    VectorFileError,
    VectorMemoryError,
    VectorMismatchError,
    VectorTableFullError,
)
from steering_server.errors import (
    ConnectionFullError,
    DrainingError,
    MissingScopeError,
    NoTokenError,
    QueueFullError,
    ResponseTooLargeError,
    SlowReaderError,
    UnknownTokenError,
)
from steering_spec import InvalidRequestError, Violation, ViolationKind

DOMAIN = "pivotal-steering"
DETAILS_KEY = "grpc-status-details-bin"
# gRPC refuses trailers above 8 KiB, and a status travels in them twice over: its message percent-encoded (up
# to three bytes for one), and the whole of it in base64 (four for three). 3 * 600 + 4/3 * 4096 leaves room.
MAX_STATUS_BYTES = 4096
MAX_MESSAGE_BYTES = 600
MAX_VIOLATION_BYTES = 400

Code = grpc.StatusCode
STATUS: dict[type[Exception] | ViolationKind, tuple[grpc.StatusCode, str]] = {
    ViolationKind.INVALID: (Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ViolationKind.NOT_FOUND: (Code.NOT_FOUND, "NOT_FOUND"),
    ViolationKind.PRECONDITION: (Code.FAILED_PRECONDITION, "NOT_APPLICABLE"),
    NotFiniteError: (Code.INVALID_ARGUMENT, "NOT_FINITE"),
    VectorFileError: (Code.INVALID_ARGUMENT, "INVALID_VECTOR_FILE"),
    VectorMismatchError: (Code.FAILED_PRECONDITION, "VECTOR_FOR_ANOTHER_MODEL"),
    VectorExistsError: (Code.ALREADY_EXISTS, "VECTOR_EXISTS"),
    VectorMemoryError: (Code.RESOURCE_EXHAUSTED, "VECTOR_MEMORY_FULL"),
    VectorTableFullError: (Code.RESOURCE_EXHAUSTED, "VECTOR_TABLE_FULL"),
    NoTokenError: (Code.UNAUTHENTICATED, "NO_TOKEN"),
    UnknownTokenError: (Code.UNAUTHENTICATED, "UNKNOWN_TOKEN"),
    MissingScopeError: (Code.PERMISSION_DENIED, "MISSING_SCOPE"),
    QueueFullError: (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    ConnectionFullError: (Code.RESOURCE_EXHAUSTED, "CONNECTION_FULL"),
    ResponseTooLargeError: (Code.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE"),
    SlowReaderError: (Code.RESOURCE_EXHAUSTED, "SLOW_READER"),
    DrainingError: (Code.UNAVAILABLE, "DRAINING"),
    EngineStoppedError: (Code.UNAVAILABLE, "ENGINE_STOPPED"),
    Exception: (Code.INTERNAL, "INTERNAL"),
}


def code_and_reason(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The row of the table for an exception: that of its nearest base."""
    if isinstance(error, InvalidRequestError):
        return STATUS[error.kind]
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """The status that a caller gets for an exception; at most `MAX_STATUS_BYTES`."""
    code, reason = code_and_reason(error)
    violations = _violations(error)
    status = status_pb2.Status(code=code.value[0], message=_message(error, code, violations, request_id))
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"request_id": request_id})
    status.details.append(_packed(info))
    if isinstance(error, QueueFullError):
        delay = Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_seconds))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if violations:
        room = MAX_STATUS_BYTES - status.ByteSize()
        status.details.append(_packed(_bad_request(violations, room)))
    return status


async def abort(context: grpc.aio.ServicerContext[object, object], status: status_pb2.Status) -> None:
    """Ends a call with a status.

    Raises:
        grpc.aio.AbortError: Always; gRPC's own way to leave a handler.
    """
    code = next(one for one in Code if one.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _violations(error: Exception) -> list[Violation]:
    if isinstance(error, InvalidRequestError):
        return list(error.violations)
    if isinstance(error, VectorFileError):
        return [Violation(error.field, problem) for problem in error.problems]
    return []


def _message(error: Exception, code: grpc.StatusCode, violations: list[Violation], request_id: str) -> str:
    if code is Code.INTERNAL:
        return f"internal error; the server's log has more under request id {request_id}"
    if isinstance(error, VectorFileError):  # its own text begins with a path of this machine
        return clip("; ".join(error.problems), MAX_MESSAGE_BYTES)
    count = f"{len(violations)} faults: " if len(violations) > 1 else ""
    return clip(count + str(error), MAX_MESSAGE_BYTES)


def _bad_request(violations: list[Violation], room: int) -> error_details_pb2.BadRequest:
    """As many violations as fit into `room` bytes; the last one says how many did not."""
    room -= 200  # the wrapping Any with its type URL, and the last line
    shown: list[error_details_pb2.BadRequest.FieldViolation] = []
    for violation in violations:
        field = error_details_pb2.BadRequest.FieldViolation(
            field=clip(violation.field, MAX_VIOLATION_BYTES),
            description=clip(violation.description, MAX_VIOLATION_BYTES),
            reason=violation.kind.value,
        )
        room -= field.ByteSize() + 3
        if room < 0:
            more = f"and {len(violations) - len(shown)} more"
            shown.append(error_details_pb2.BadRequest.FieldViolation(description=more))
            break
        shown.append(field)
    return error_details_pb2.BadRequest(field_violations=shown)


def clip(text: str, limit: int) -> str:
    """The text, cut to at most `limit` bytes of UTF-8 with an ellipsis; lone surrogates are replaced."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def _packed(message: Message) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped
