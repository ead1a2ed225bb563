"""The table from gRPC status to exception, over a real channel to a server that fails as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import steering_client
from steering_client import AsyncClient, Client, SteeringError, errors
from steering_spec import InvalidRequestError, Violation, ViolationKind

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


class FailingHandler(grpc.GenericRpcHandler):
    """Ends every call with the same status."""

    def __init__(self, code: grpc.StatusCode, details: tuple[object, ...]) -> None:
        self._status = status_pb2.Status(code=code.value[0], message="told so")
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            self._status.details.append(packed)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        del handler_call_details  # every method fails alike

        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort_with_status(rpc_status.to_status(self._status))

        return grpc.unary_unary_rpc_method_handler(fail)


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that fails with `request.param`: a code and details."""
    code, details = request.param
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[FailingHandler(code, details)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_every_status_has_an_exception() -> None:
    assert set(errors.ERRORS) == set(CODES)


def test_every_exception_is_exported_and_stands_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    for kind in {SteeringError, *errors.ERRORS.values(), errors.ConnectionFailedError}:
        assert getattr(steering_client, kind.__name__) is kind
        assert kind.__name__ in tree


@pytest.mark.parametrize("failing", [(code, ()) for code in CODES], indirect=True, ids=lambda p: p[0].name)
async def test_both_clients_raise_the_exception_of_the_table(
    failing: str, request: pytest.FixtureRequest
) -> None:
    code = next(one for one in CODES if f"[{one.name}]" in request.node.name)
    expected = (
        errors.ERRORS[code] if code is not grpc.StatusCode.UNAVAILABLE else errors.ConnectionFailedError
    )
    with Client(failing) as client, pytest.raises(SteeringError, match="told so") as caught:
        client.model()
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    async with AsyncClient(failing) as other:
        with pytest.raises(SteeringError, match="told so") as caught:
            await other.model()
    assert type(caught.value) is expected


FULL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    (
        error_details_pb2.ErrorInfo(reason="REASON", domain="d", metadata={"request_id": "r"}),
        error_details_pb2.RetryInfo(retry_delay={"seconds": 1, "nanos": 500_000_000}),
        error_details_pb2.BadRequest(
            field_violations=[
                {"field": "a.b[0]", "description": "wrong", "reason": "NOT_FOUND"},
                {"field": "c", "description": "also", "reason": "UNHEARD_OF"},
            ]
        ),
        error_details_pb2.Help(),  # a detail that this client does not know
    ),
)


@pytest.mark.parametrize("failing", [FULL], indirect=True)
def test_all_details_are_read(failing: str) -> None:
    with Client(failing) as client, pytest.raises(steering_client.InvalidArgumentError) as caught:
        client.model()
    error = caught.value
    assert isinstance(error, InvalidRequestError)
    assert (str(error), error.reason, error.request_id, error.retry_after) == ("told so", "REASON", "r", 1.5)
    assert error.violations == (
        Violation("a.b[0]", "wrong", ViolationKind.NOT_FOUND),
        Violation("c", "also", ViolationKind.INVALID),
    )
    assert error.kind is ViolationKind.INVALID


REASONED = (grpc.StatusCode.UNAVAILABLE, (error_details_pb2.ErrorInfo(reason="DRAINING"),))


@pytest.mark.parametrize("failing", [REASONED], indirect=True)
def test_a_server_that_says_why_it_is_unavailable_was_reached(failing: str) -> None:
    with Client(failing) as client, pytest.raises(steering_client.UnavailableError) as caught:
        client.model()
    assert not isinstance(caught.value, steering_client.ConnectionFailedError)
