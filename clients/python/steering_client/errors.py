"""Errors of the client, and the table from gRPC status to exception.

    SteeringError
    ├── InvalidArgumentError        the request is wrong; also an `InvalidRequestError` of `steering_spec`
    ├── NotFoundError               no such model, vector or file
    ├── AlreadyExistsError          the name is loaded with another file
    ├── FailedPreconditionError     a sound request that does not apply to this model or vector
    ├── ResourceExhaustedError      the server is full, or a message is too large; `.retry_after`
    ├── UnavailableError            the server is stopping, or lost its engine
    │   └── ConnectionFailedError       no server was reached, or the connection broke
    ├── DeadlineExceededError       the call's timeout passed
    ├── CallCancelledError          the call was cancelled
    ├── UnauthenticatedError        no token, or a wrong one
    ├── PermissionDeniedError       a token without the right to do this
    └── InternalError               anything else; the server's log has more under `.request_id`

What is wrong with a request is in `.violations`, all of it at once, with the paths of the fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from steering_spec import InvalidRequestError, Violation, ViolationKind


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a server says about an error beside its message.

    Attributes:
        reason: Stable word for programs, such as `QUEUE_FULL`; empty when the server sent none.
        request_id: The request's id in the server's log; empty when the server sent none.
        violations: What is wrong with the request.
        retry_after: Seconds after which to try again; None when the server did not say.
    """

    reason: str = ""
    request_id: str = ""
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None


class SteeringError(Exception):
    """Base of all errors of the client; the attributes are those of `ErrorDetails`."""

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        details = details or ErrorDetails()
        Exception.__init__(self, message)  # not super(): InvalidRequestError, beside it, takes violations
        self.reason = details.reason
        self.request_id = details.request_id
        self.violations = details.violations
        self.retry_after = details.retry_after


class InvalidArgumentError(SteeringError, InvalidRequestError):
    """The request is wrong; found by the client before sending, or by the server."""

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> InvalidArgumentError:
        """The error for what the client itself found."""
        message = "; ".join(map(str, violations))
        return cls(message, ErrorDetails(reason="INVALID_REQUEST", violations=tuple(violations)))

    @property
    def kind(self) -> ViolationKind:
        """Always malformed: the other kinds have errors of their own here."""
        return ViolationKind.INVALID


class NotFoundError(SteeringError):
    """No such model, vector or file."""


class AlreadyExistsError(SteeringError):
    """The name is loaded with another file."""


class FailedPreconditionError(SteeringError):
    """A sound request that does not apply to this model or vector."""


class ResourceExhaustedError(SteeringError):
    """The server is full (`retry_after` says when to try again), or a message is too large."""


class UnavailableError(SteeringError):
    """The server is stopping, or lost its engine."""


class ConnectionFailedError(UnavailableError):
    """No server was reached, or the connection broke."""


class DeadlineExceededError(SteeringError):
    """The call's timeout passed."""


class CallCancelledError(SteeringError):
    """The call was cancelled."""


class UnauthenticatedError(SteeringError):
    """No token, or a wrong one."""


class PermissionDeniedError(SteeringError):
    """A token without the right to do this."""


class InternalError(SteeringError):
    """Anything else; the server's log has more under `request_id`."""


ERRORS: dict[grpc.StatusCode, type[SteeringError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.ABORTED: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNIMPLEMENTED: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}


@contextmanager
def steering_errors() -> Iterator[None]:
    """Turns the gRPC errors of its block, sync or asyncio, into errors of this module."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from error
    except asyncio.CancelledError:
        # gRPC cancels what waits for a call that is ended from elsewhere, by closing its stream or its client, and a
        # task that nobody has cancelled would end without a word.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise CallCancelledError("the call was cancelled: its stream or its client was closed") from None
    except grpc.aio.UsageError as error:  # the synchronous client's channel raises a ValueError
        raise ValueError(f"the client is closed: {error}") from error


def error_of(error: grpc.RpcError) -> SteeringError:
    """The client's error for a gRPC error."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    details = _details(error)
    # A server of ours gives a reason with every error; without one, the transport spoke.
    if code is grpc.StatusCode.UNAVAILABLE and not details.reason:
        return ConnectionFailedError(message, details)
    return ERRORS[code](message, details)


def _details(error: grpc.RpcError) -> ErrorDetails:
    try:
        status: status_pb2.Status | None = rpc_status.from_call(error)
    except ValueError:  # a proxy that rewrote the code or the message
        status = None
    if status is None:
        return ErrorDetails()
    info = _find(status, error_details_pb2.ErrorInfo())
    retry = _find(status, error_details_pb2.RetryInfo())
    faults = _find(status, error_details_pb2.BadRequest())
    return ErrorDetails(
        reason=info.reason if info else "",
        request_id=info.metadata["request_id"] if info and "request_id" in info.metadata else "",
        violations=tuple(map(_violation, faults.field_violations)) if faults else (),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


def _violation(message: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    kinds = {kind.value: kind for kind in ViolationKind}
    return Violation(message.field, message.description, kinds.get(message.reason, ViolationKind.INVALID))


M = TypeVar("M", bound=Message)


def _find(status: status_pb2.Status, detail: M) -> M | None:
    return next((detail for packed in status.details if packed.Unpack(detail)), None)
