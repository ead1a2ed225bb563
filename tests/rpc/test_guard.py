"""What the guard does with exceptions that no one expects."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from steering_server.rpc.guard import Guard
from tests.support.statuses import failure


@pytest.fixture(scope="module")
def failing() -> Iterator[grpc.Channel]:
    """A guarded service whose methods raise what no one expects."""

    class Failing(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            async def unary(request: bytes, context: object) -> bytes:
                raise RuntimeError("the secret path /srv/models")

            async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
                yield b"first"
                raise KeyError("the secret path /srv/models")

            if details.method == "/steering.v1.Failing/Unary":
                return grpc.unary_unary_rpc_method_handler(unary, bytes)
            return grpc.unary_stream_rpc_method_handler(stream, bytes)

    ports: list[int] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server(interceptors=[Guard()], handlers=[Failing()])
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        yield channel
    stop.set()
    thread.join()


def test_an_unknown_exception_is_internal_and_tells_the_request_id_only(
    failing: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        failing.unary_unary("/steering.v1.Failing/Unary")(b"")
    told = failure(caught.value)
    assert (told.code, told.reason, told.faults) == (grpc.StatusCode.INTERNAL, "INTERNAL", ())
    assert told.message == f"internal error; the server's log has more under request id {told.request_id}"
    assert len(told.request_id) == 32
    assert "the secret path" in caplog.text


def test_an_unknown_exception_in_a_stream_is_internal_too(failing: grpc.Channel) -> None:
    call = failing.unary_stream("/steering.v1.Failing/Stream")(b"")
    assert next(call) == b"first"
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert failure(caught.value).reason == "INTERNAL"
    assert "secret" not in caught.value.details()
