"""What is bounded by size: requests that are read, responses that are sent, long texts of one connection."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from contextlib import AsyncExitStack

import grpc
import pytest

from steering.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from steering_server.errors import ConnectionFullError
from steering_server.rpc import guard, model
from steering_server.rpc.lanes import Lanes
from steering_server.serving import CHANNEL_OPTIONS
from steering_spec import limits
from tests.support.server import LiveServer, wait_until
from tests.support.statuses import failure

GET_MODEL = "/steering.v1.ModelService/GetModel"


async def test_a_lane_has_its_places_and_others_have_theirs() -> None:
    lanes = Lanes(2, most=3, what="files")
    order: list[str] = []

    async def ask(name: str) -> None:
        async with lanes.place("one"):
            order.append(name)

    async with AsyncExitStack() as held:
        await held.enter_async_context(lanes.place("one"))
        await held.enter_async_context(lanes.place("one"))
        waiting = asyncio.create_task(ask("waited"))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionFullError, match="3 files of this connection") as caught:
            await ask("refused")
        assert caught.value.retry_seconds > 0
        async with lanes.place("other"):
            order.append("other")
        assert order == ["other"]
        waiting.cancel()
        await asyncio.wait([waiting])
        waiting = asyncio.create_task(ask("next"))
        await asyncio.sleep(0)
        assert order == ["other"]
    await waiting
    assert order == ["other", "next"]
    assert lanes.connections == 0


def test_calls_without_their_request_hold_up_their_own_connection_only(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    first_message = guard.first_message

    async def read(context: grpc.aio.ServicerContext[object, object]) -> bytes:
        reads.append(context.peer())
        return await first_message(context)

    monkeypatch.setattr(guard, "first_message", read)
    own_pool = ("grpc.use_local_subchannel_pool", 1)
    with live.channel(own_pool) as channel, live.channel(own_pool) as other:
        unsent: queue.Queue[bytes | None] = queue.Queue()
        many = 3 * guard.READS
        # Each takes a message of its own from the queue, and ends with None.
        calls = [channel.stream_unary(GET_MODEL).future(iter(unsent.get, None)) for _ in range(many)]
        wait_until(lambda: len(reads) == guard.READS)
        other.unary_unary(GET_MODEL)(b"", timeout=30)
        assert len(reads) == guard.READS + 1
        assert len(set(reads)) == 2
        for _ in calls:
            unsent.put(b"")
        for _ in calls:
            unsent.put(None)
        channel.unary_unary(GET_MODEL)(b"", timeout=30)


def test_long_texts_of_one_connection_are_bounded(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More at once than may wait are refused with a delay, and those of another connection are let in."""
    go = threading.Event()
    monkeypatch.setattr(live.model, "tokenize", lambda _prompt: [1] if go.wait(30) else [])
    long = model_pb2.TokenizeRequest(text="word " * 10_000)
    own_pool = ("grpc.use_local_subchannel_pool", 1)
    with live.channel(own_pool) as channel, live.channel(own_pool) as other:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        try:
            calls = [stub.Tokenize.future(long) for _ in range(model.MOST_LONG + 1)]
            wait_until(lambda: any(call.done() for call in calls))
            (refused,) = (failure(error) for call in calls if call.done() and (error := call.exception()))
            calls.append(model_pb2_grpc.ModelServiceStub(other).Tokenize.future(long))
        finally:
            go.set()
        codes = [call.code() for call in calls]
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONNECTION_FULL")
    assert f"{model.MOST_LONG} long texts of this connection" in refused.message
    assert refused.retry_seconds
    assert codes.count(grpc.StatusCode.OK) == model.MOST_LONG + 1


def test_a_chat_of_many_messages_is_long(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of empty messages too: a template goes through each."""
    threads: list[str] = []
    tokenize = live.model.tokenize

    def noticed(prompt: object) -> list[int]:
        threads.append(threading.current_thread().name)
        return tokenize(prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(live.model, "tokenize", noticed)
    chat = generation_pb2.Chat(messages=[generation_pb2.Message(role="user")] * 1_500)
    with live.channel() as channel:
        model_pb2_grpc.ModelServiceStub(channel).Tokenize(model_pb2.TokenizeRequest(chat=chat))
    assert threads[0].startswith("tokenizing")


def test_a_stream_whose_result_no_message_holds_ends_with_a_reason(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MESSAGE_BYTES", 2_000)
    sampling = generation_pb2.SamplingParams(max_token_count=200, min_token_count=200)
    spec = generation_pb2.GenerationSpec(text="hi", sampling=sampling)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    messages = stub.StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec))
    told = []
    with pytest.raises(grpc.RpcError) as caught:
        told += messages
    refused = failure(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")


def test_a_text_that_no_message_holds_is_refused_with_a_reason(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(limits, "MAX_MESSAGE_BYTES", 1_000)
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).Detokenize(model_pb2.DetokenizeRequest(ids=[40] * 1_001))
    assert failure(caught.value).reason == "RESPONSE_TOO_LARGE"
    wait_until(lambda: "Detokenize RESOURCE_EXHAUSTED RESPONSE_TOO_LARGE" in caplog.text)


def test_what_grpc_refuses_is_not_recorded_as_a_fault_of_the_request(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """It tells the server of no message, and of the end of the call; so it is recorded as ended."""
    caplog.set_level(logging.INFO)
    assert dict(CHANNEL_OPTIONS)["grpc.max_receive_message_length"] < 2 * limits.MAX_VECTOR_FILE_BYTES
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(GET_MODEL)(bytes(limits.MAX_RECEIVED_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait_until(lambda: "GetModel" in caplog.text)
    assert "GetModel CANCELLED" in caplog.text
