"""Ten thousand malformed requests end in a status of the table, and leave the server as it was."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steering_client import Client, SamplingParams, SteeringRule
from steering_server.rpc.services import api_services
from steering_spec import VectorRef
from tests.support.http2 import HEADERS, RST_STREAM, Connection
from tests.support.malformed import Request, cut, hostile, requests
from tests.support.server import ServerProcess, server_process
from tests.support.statuses import code_of

SERVICES = (
    *api_services(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
)
Code = grpc.StatusCode
LISTED = {
    Code.OK,  # some are sound by chance
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED,  # no such method
}
AT_A_TIME = 20
MOST_GROWTH = 2 * 2**20  # of 2,000 requests
VECTORS = ("calm", "pivot")  # those of its directory that are sound
GET_MODEL = "/steering.v1.ModelService/GetModel"


class Fuzzed:
    """A server process, and what it answers to bytes."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.address = process.address()
        self.sent = 0
        self._runner = asyncio.Runner()
        self._channel: grpc.aio.Channel | None = None

    def codes(self, batch: Sequence[Request]) -> list[grpc.StatusCode]:
        """The codes that requests end with that are sent at the same time."""
        self.sent += len(batch)
        return self._runner.run(self._codes(batch))

    async def _codes(self, batch: Sequence[Request]) -> list[grpc.StatusCode]:
        if self._channel is None:
            options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
            self._channel = grpc.aio.insecure_channel(self.address, options)
        return await asyncio.gather(*(self._code(self._channel, one) for one in batch))

    async def _code(self, channel: grpc.aio.Channel, request: Request) -> grpc.StatusCode:
        call = channel.unary_stream(request.method)(request.data, timeout=60)
        try:
            async for _ in call:
                if request.method.endswith("/Watch"):  # it goes on for ever
                    call.cancel()
                    return Code.OK
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await call.code()

    def memory(self) -> int:
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def answers(self) -> list[object]:
        """What the server answers to sound requests."""
        sampling = SamplingParams(temperature=0, max_tokens=8)
        with Client(self.address) as client:
            self._undo_what_was_sound(client)
            done = client.generate(
                "two plus two", sampling=sampling, steering=SteeringRule("pivot"), timeout=60
            )
            # A vector is given back at the step after its request's last one; if it never were, this would time out.
            vectors = client.list_vectors(timeout=60)
            while any(one.running_requests for one in vectors):
                time.sleep(0.01)
                vectors = client.list_vectors(timeout=60)
            return [client.model(timeout=60), vectors, done.text, done.tokens]

    @staticmethod
    def _undo_what_was_sound(client: Client) -> None:
        """Some requests are no more than right: one may unload a vector of the server, or load it once more."""
        for info in client.list_vectors(all_versions=True, timeout=60):
            if VectorRef.parse(info.name).id not in VECTORS:
                client.unload_vector(info.pinned_name, timeout=60)
        for name in VECTORS:
            client.load_vector(name, path_on_server=f"{name}.safetensors", timeout=60)

    def close(self) -> None:
        async def close() -> None:
            if self._channel is not None:
                await self._channel.close()

        self._runner.run(close())
        self._runner.close()


@pytest.fixture(scope="module")
def fuzzed(model_folder: Path, vector_folder: Path) -> Iterator[Fuzzed]:
    """A server on which what is sound by chance takes little time."""
    options = ("--max-context", "64", "--default-max-tokens", "2", "--port", "0", "--log-format", "json")
    with server_process("--model", str(model_folder), "--vectors", str(vector_folder), *options) as process:
        running = Fuzzed(process)
        yield running
        running.close()


@pytest.fixture(scope="module")
def answers(fuzzed: Fuzzed) -> list[object]:
    return fuzzed.answers()


def send_generated(fuzzed: Fuzzed, rounds: int) -> None:
    """Sends generated requests, each of them whole and cut off; two times `AT_A_TIME` in a round."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(max_examples=rounds, deadline=None, database=None, suppress_health_check=slow)
    @given(st.lists(requests(SERVICES), min_size=AT_A_TIME, max_size=AT_A_TIME))
    def send(batch: list[Request]) -> None:
        for sent in (batch, list(map(cut, batch))):
            codes = fuzzed.codes(sent)
            assert not [(one, code) for one, code in zip(sent, codes, strict=True) if code not in LISTED]

    send()


def test_generated_requests_end_in_a_listed_status_and_leave_nothing_behind(
    fuzzed: Fuzzed, answers: list[object]
) -> None:
    send_generated(fuzzed, rounds=50)  # fills what is filled once: caches, pools, arenas
    held = [fuzzed.memory()]
    for _ in range(4):
        send_generated(fuzzed, rounds=50)
        held.append(fuzzed.memory())
    assert fuzzed.sent >= 10_000
    # What is kept of every request grows each time; an allocator takes what it lacks in steps.
    assert min(later - earlier for earlier, later in pairwise(held)) < MOST_GROWTH
    assert fuzzed.answers() == answers


def test_hostile_requests_end_in_a_listed_status(fuzzed: Fuzzed, answers: list[object]) -> None:
    for request in hostile():
        [code] = fuzzed.codes([request])
        assert code in LISTED - {Code.OK}, (request, code)
    assert fuzzed.answers() == answers


@pytest.mark.parametrize(
    "data",
    [
        b"",  # no message at all
        b"\x00\x00",  # half of a message's head
        b"\x00\x00\x00\x00\x09abc",  # less than the head says
        b"\x00\xff\xff\xff\xffabc",  # four gigabytes
        b"\x01\x00\x00\x00\x03abc",  # compressed, with nothing said of how
    ],
)
def test_a_message_that_is_cut_off_ends_its_call(fuzzed: Fuzzed, data: bytes) -> None:
    with Connection(fuzzed.address) as connection:
        connection.call(1, GET_MODEL, data)
        assert connection.end_of(1) in {HEADERS, RST_STREAM}


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), bytes(10_000)])
def test_what_is_not_even_http2_ends_its_connection(fuzzed: Fuzzed, data: bytes) -> None:
    host, _, port = fuzzed.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        with suppress(OSError):  # it may have been ended already, hard or soft
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def test_a_call_may_have_no_message_or_too_many(fuzzed: Fuzzed) -> None:
    with grpc.insecure_channel(fuzzed.address) as channel:
        for method in (
            GET_MODEL,
            "/steering.v1.GenerationService/StreamGenerate",
            "/grpc.health.v1.Health/Check",
        ):
            call = channel.stream_stream(method)
            assert code_of(lambda call=call: list(call(iter([]), timeout=60))) is Code.INVALID_ARGUMENT
        model = channel.stream_unary(GET_MODEL)
        assert model(iter([b""] * 3), timeout=60) == channel.unary_unary(GET_MODEL)(b"", timeout=60)


def test_no_record_of_all_these_is_of_a_failure_of_the_server(fuzzed: Fuzzed) -> None:
    assert fuzzed.codes([Request(GET_MODEL, b"\xff")]) == [Code.INVALID_ARGUMENT]
    entries = [json.loads(line) for line in fuzzed.process.log().splitlines()]
    codes = {entry["code"] for entry in entries if "code" in entry}
    assert "INVALID_ARGUMENT" in codes
    assert not codes & {"INTERNAL", "UNKNOWN"}
    # gRPC's own say that a client was gone before it was answered.
    ours = [entry for entry in entries if entry["logger"].startswith("steering")]
    assert not [entry for entry in ours if entry["level"] in {"ERROR", "CRITICAL"}]
