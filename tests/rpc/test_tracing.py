"""Spans of calls, as a collector gets them over OTLP."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from steering.v1 import generation_pb2, generation_pb2_grpc
from steering_client import Client, InvalidArgumentError, SamplingParams, SteeringRule, UnavailableError
from steering_server.checking import check
from steering_server.config import ServerConfig
from tests.support.server import LiveServer, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
GREEDY = SamplingParams(temperature=0, max_tokens=4)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OpenTelemetry collector does, as far as a server can tell."""

    def __init__(self) -> None:
        self.services: list[str] = []
        self._spans: queue.Queue[trace_pb2.Span] = queue.Queue()

    def Export(  # noqa: N802 -- the name of the RPC
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for of_resource in request.resource_spans:
            self.services.append(values(of_resource.resource.attributes)["service.name"])
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self._spans.put(span)
        return trace_service_pb2.ExportTraceServiceResponse()

    def next_span(self) -> trace_pb2.Span:
        return self._spans.get(timeout=30)


def values(attributes: Any) -> dict[str, Any]:
    def value(one: AnyValue) -> Any:
        kind = one.WhichOneof("value")
        return (
            [value(item) for item in one.array_value.values] if kind == "array_value" else getattr(one, kind)
        )

    return {one.key: value(one.value) for one in attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    own = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(own, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield own
    server.stop(None).wait()


@pytest.fixture(scope="module")
def traced(collector: Collector, model_folder: Path, vector_folder: Path) -> Iterator[LiveServer]:
    """A server that sends its spans, with prompts in its log."""
    with LiveServer(model_folder, vectors=vector_folder, tracing=True, log_prompts=True) as server:
        yield server


def test_a_span_tells_what_a_call_cost_and_nothing_of_what_was_said(
    traced: LiveServer, collector: Collector
) -> None:
    with Client(traced.address) as client:
        done = client.generate("a secret", sampling=GREEDY, steering=SteeringRule("calm"), request_id="r-1")
    span = collector.next_span()
    told = values(span.attributes)
    assert span.name == "steering.v1.GenerationService/Generate"
    assert span.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert span.start_time_unix_nano < span.end_time_unix_nano
    assert span.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert 0 < told.pop("steering.first_token_seconds") <= done.usage.total_seconds
    assert 0 <= told.pop("steering.queue_seconds") <= done.usage.total_seconds
    assert told == {
        "rpc.system.name": "grpc",
        "rpc.method": "steering.v1.GenerationService/Generate",
        "rpc.response.status_code": "OK",
        "gen_ai.usage.input_tokens": done.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 4,
        "steering.steered_rows": done.usage.steered_rows,
        "steering.vectors": ["calm"],
        "steering.request_id": "r-1",
    }
    assert b"secret" not in span.SerializeToString()
    assert collector.services[-1] == "steering-server"


def test_a_call_becomes_a_part_of_its_callers_trace(
    traced: LiveServer, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sampling = generation_pb2.SamplingParams(max_token_count=2)
    request = generation_pb2.StreamGenerateRequest(
        spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling)
    )
    with traced.channel() as channel:
        service = generation_pb2_grpc.GenerationServiceStub(channel)
        list(service.StreamGenerate(request, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")]))
    span = collector.next_span()
    assert span.name == "steering.v1.GenerationService/StreamGenerate"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    [record] = [one for one in caplog.records if "StreamGenerate OK" in one.getMessage()]
    assert vars(record)["notes"]["trace_id"] == TRACE


def test_a_trace_that_is_not_sampled_stays_so(traced: LiveServer, collector: Collector) -> None:
    unsampled, sampled = f"00-{TRACE}-{PARENT}-00", f"00-{TRACE[::-1]}-{PARENT}-01"
    with traced.channel() as channel:
        call = channel.unary_unary("/steering.v1.ModelService/GetModel")
        for parent in (unsampled, sampled):
            call(b"", metadata=[("traceparent", parent)])
    assert collector.next_span().trace_id.hex() == TRACE[::-1]


def test_refusals_are_the_callers_and_losses_the_servers(model_folder: Path, collector: Collector) -> None:
    with LiveServer(model_folder, tracing=True) as server, Client(server.address) as client:
        with pytest.raises(InvalidArgumentError):
            client.generate([10**6], sampling=GREEDY)
        refused = collector.next_span()
        server.close_engine()
        with pytest.raises(UnavailableError):
            client.generate("hi", sampling=GREEDY)
        lost = collector.next_span()
    told = values(refused.attributes)
    assert (told["rpc.response.status_code"], told["error.type"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refused.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert values(lost.attributes)["rpc.response.status_code"] == "UNAVAILABLE"
    assert lost.status.code == trace_pb2.Status.STATUS_CODE_ERROR


def test_a_stopping_server_sends_what_it_has(
    model_folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with LiveServer(model_folder, tracing=True) as server, Client(server.address) as client:
        client.model()
    assert collector.next_span().name == "steering.v1.ModelService/GetModel"
    assert collector.services[-1] == "mine"


def test_without_its_packages_tracing_is_refused_in_one_line(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "steering_server.open_telemetry", raising=False)
    faults, _ = check(ServerConfig(model=str(model_folder), tracing=True))
    [fault] = faults
    assert fault.startswith("--tracing: ")
    assert fault.endswith("; install pivotal-steering[otel]")


def test_a_collector_that_is_away_holds_nobody_up(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    before = set(threading.enumerate())
    with LiveServer(model_folder, tracing=True) as server, Client(server.address) as client:
        client.model()
        wait_until(lambda: "UNAVAILABLE" in caplog.text)
        assert client.generate("hi", sampling=GREEDY).tokens
    after = set(threading.enumerate()) - before
    assert not [thread.name for thread in after if thread.name.startswith("Otel")]
