"""Requests that end early free their row at the next step; slow readers hold nobody up."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from steering.v1 import generation_pb2, generation_pb2_grpc, steering_pb2, vector_pb2, vector_pb2_grpc
from tests.support.server import LiveServer, wait_until
from tests.support.statuses import failure

Stub = generation_pb2_grpc.GenerationServiceStub
LONG = generation_pb2.GenerationSpec(
    text="hi", sampling=generation_pb2.SamplingParams(temperature=0, max_token_count=8000)
)
SHORT = generation_pb2.GenerationSpec(
    text="hi", sampling=generation_pb2.SamplingParams(temperature=0, max_token_count=8)
)


def test_cancelling_a_stream_frees_its_row(channel: grpc.Channel, live: LiveServer) -> None:
    call = Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=LONG))
    next(call)
    assert live.stats().active_requests == 1
    call.cancel()
    live.wait_idle()
    assert live.stats().generated_tokens < 8000


def test_cancelling_one_answer_frees_its_row(channel: grpc.Channel, live: LiveServer) -> None:
    call = Stub(channel).Generate.future(generation_pb2.GenerateRequest(spec=LONG))
    wait_until(lambda: live.stats().active_requests == 1)
    call.cancel()
    live.wait_idle()


def test_a_deadline_frees_the_row(channel: grpc.Channel, live: LiveServer) -> None:
    call = Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=LONG), timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    live.wait_idle()


def test_a_request_that_ends_in_the_queue_never_runs_and_gives_back_what_it_had(
    model_folder: Path, vector_folder: Path
) -> None:
    settings = {"max_concurrent": 1, "max_queued": 4, "max_queued_per_connection": 4, "metrics_port": 0}
    rule = steering_pb2.SteeringRule(vector="vectors/pivot")
    with LiveServer(model_folder, vectors=vector_folder, **settings) as server, server.channel() as channel:

        def users() -> int:
            vectors = vector_pb2_grpc.VectorServiceStub(channel)
            return vectors.GetVector(
                vector_pb2.GetVectorRequest(name=rule.vector)
            ).vector.running_request_count

        def told(name: str) -> float:
            return server.metrics()[f"steering_{name}_requests"]

        stub, whole = Stub(channel), generation_pb2.GenerateRequest(spec=LONG)
        whole.spec.steering.rules.append(rule)
        long = generation_pb2.StreamGenerateRequest(spec=LONG)
        running = stub.StreamGenerate(long)
        next(running)
        ready = stub.StreamGenerate(long)  # stands before the row in the engine itself
        wait_until(lambda: server.stats().waiting_requests == 1)
        cancelled = stub.Generate.future(whole)
        wait_until(lambda: told("unfinished") == 3)
        assert told("waiting") == 2
        assert users() == 1
        late = stub.Generate.future(whole, timeout=0.2)
        with pytest.raises(grpc.RpcError) as caught:
            late.result()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        cancelled.cancel()
        wait_until(lambda: told("unfinished") == 2)
        assert told("waiting") == 1
        assert users() == 0
        assert server.stats().waiting_requests == 1
        ready.cancel()
        running.cancel()
        server.wait_idle()
        assert stub.Generate(generation_pb2.GenerateRequest(spec=SHORT)).results


def test_a_closed_connection_frees_the_row(live: LiveServer) -> None:
    with live.channel(("grpc.use_local_subchannel_pool", 1)) as channel:
        next(Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=LONG)))
    live.wait_idle()


def test_a_cancelled_call_takes_nothing_from_its_neighbours(channel: grpc.Channel, live: LiveServer) -> None:
    stub = Stub(channel)
    [alone] = stub.Generate(generation_pb2.GenerateRequest(spec=SHORT)).results
    call = stub.StreamGenerate(generation_pb2.StreamGenerateRequest(spec=LONG))
    next(call)
    beside = stub.Generate.future(generation_pb2.GenerateRequest(spec=SHORT))
    call.cancel()
    assert list(beside.result().results[0].tokens) == list(alone.tokens)
    live.wait_idle()


def test_a_slow_reader_loses_its_stream_and_nobody_waits_for_it(
    model_folder: Path, vector_folder: Path
) -> None:
    with LiveServer(model_folder, vectors=vector_folder, stream_buffer=16) as server:
        # Small windows: otherwise the transport takes in thousands of these small messages by itself.
        options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
        with server.channel(*options) as channel, server.channel() as other:
            # 16 events for each step make the stream large.
            rules = [steering_pb2.SteeringRule(vector="vectors/calm", strength=0.01)] * 16
            spec = generation_pb2.GenerationSpec(steering_trace=True)
            spec.MergeFrom(LONG)
            spec.steering.rules.extend(rules)
            slow = Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec))
            next(slow)
            Stub(other).Generate(generation_pb2.GenerateRequest(spec=SHORT), timeout=30)
            server.wait_idle()  # the row is freed while the reader still sleeps
            assert server.stats().generated_tokens < 8000
            with pytest.raises(grpc.RpcError) as caught:
                list(slow)
        lost = failure(caught.value)
    assert (lost.code, lost.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")


def test_a_step_of_many_completions_is_no_step_that_a_reader_fell_behind(model_folder: Path) -> None:
    sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=4, completion_count=64)
    spec = generation_pb2.GenerationSpec(text="hi", sampling=sampling)
    with LiveServer(model_folder, stream_buffer=8) as server, server.channel() as channel:
        messages = list(Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec)))
    results = [message.result for message in messages if message.WhichOneof("event") == "result"]
    assert sorted(result.completion_index for result in results) == list(range(64))


def test_the_smallest_buffer_has_room_for_a_last_delta_and_its_result(model_folder: Path) -> None:
    sampling = generation_pb2.SamplingParams(max_token_count=1)
    spec = generation_pb2.GenerationSpec(text="hi", sampling=sampling)
    with LiveServer(model_folder, stream_buffer=1) as server, server.channel() as channel:
        messages = list(Stub(channel).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec)))
    assert [message.WhichOneof("event") for message in messages] == ["delta", "result"]
