"""Statuses of failed calls, read with the plain library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Failure:
    """What a failed call told: code, message, reason, faults as (field, description), and seconds to wait."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    request_id: str
    faults: tuple[tuple[str, str], ...]
    retry_seconds: float | None
    size: int

    @property
    def fields(self) -> list[str]:
        return [field for field, _ in self.faults]


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    """The status code that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def failure(error: grpc.RpcError) -> Failure:
    """Reads a gRPC error; its status must be a rich one that agrees with the plain code and message."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    info, faults, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    found = {
        packed.TypeName()
        for packed in status.details
        for kind in (info, faults, retry)
        if packed.Unpack(kind)
    }
    return Failure(
        code=error.code(),
        message=status.message,
        reason=info.reason,
        domain=info.domain,
        request_id=info.metadata["request_id"],
        faults=tuple((fault.field, fault.description) for fault in faults.field_violations),
        retry_seconds=(
            retry.retry_delay.ToTimedelta().total_seconds() if "google.rpc.RetryInfo" in found else None
        ),
        size=status.ByteSize(),
    )
