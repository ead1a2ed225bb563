"""Every row of the table from exception to status, through a real channel wherever a server can get there."""

from __future__ import annotations

import math
from pathlib import Path

import grpc
import pytest

from steering.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    steering_pb2,
)
from steering_engine.errors import EngineError, ModelError
from steering_server import errors as server_errors
from steering_server.config import ConfigError
from steering_server.rpc import status as table
from steering_spec import InvalidRequestError, Violation, limits
from tests.support.models import save_tiny_model
from tests.support.server import LiveServer, wait_until
from tests.support.statuses import Failure, code_of, failure
from tests.support.vectors import save_random_vector

Stub = generation_pb2_grpc.GenerationServiceStub
LONG = generation_pb2.SamplingParams(temperature=0, max_token_count=8000)


@pytest.fixture
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def refusal(stub: Stub, spec: generation_pb2.GenerationSpec) -> Failure:
    """The failure of Generate, which StreamGenerate must answer alike."""
    with pytest.raises(grpc.RpcError) as whole:
        stub.Generate(generation_pb2.GenerateRequest(spec=spec))
    with pytest.raises(grpc.RpcError) as streamed:
        list(stub.StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec)))
    first, second = failure(whole.value), failure(streamed.value)
    assert (first.code, first.reason, first.faults) == (second.code, second.reason, second.faults)
    return first


def steered(rule: steering_pb2.SteeringRule) -> generation_pb2.GenerationSpec:
    return generation_pb2.GenerationSpec(text="hi", steering=steering_pb2.SteeringSpec(rules=[rule]))


def test_a_malformed_request_is_an_invalid_argument(stub: Stub) -> None:
    refused = refusal(
        stub,
        generation_pb2.GenerationSpec(
            text="hi", request_id="r-1", sampling=generation_pb2.SamplingParams(top_p=2)
        ),
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert (refused.domain, refused.request_id) == ("pivotal-steering", "r-1")
    assert refused.fields == ["sampling.top_p"]


def test_an_empty_request_has_no_prompt(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(generation_pb2.GenerateRequest())
    assert failure(caught.value).fields == ["prompt"]


def test_everything_wrong_is_told_at_once(stub: Stub) -> None:
    clause = steering_pb2.Clause()  # without a phase: a fault of the message, the others are of the request
    rule = steering_pb2.SteeringRule(
        vector="vectors/calm",
        strength=math.nan,
        layers=[0, 99],
        selector=steering_pb2.Selector(include=[clause]),
    )
    spec = steered(rule)
    spec.sampling.temperature = -1
    spec.sampling.stop_sequences.append("")
    refused = refusal(stub, spec)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == [
        "sampling.stop_sequences[0]",
        "sampling.temperature",
        "steering.rules[0].layers[1]",
        "steering.rules[0].selector.include[0].phase",
        "steering.rules[0].strength",
    ]
    assert refused.message.startswith("5 faults: ")


def test_nothing_is_said_of_what_stands_in_for_something_unreadable(stub: Stub) -> None:
    generation = steering_pb2.PHASE_GENERATION
    selector = steering_pb2.Selector(
        # The first has no phase. What it is read as would be wholly excluded; the prompt is judged by its tokens.
        include=[steering_pb2.Clause(), steering_pb2.Clause(phase=steering_pb2.PHASE_PROMPT)],
        exclude=[steering_pb2.Clause(phase=generation)],
    )
    selector.include[1].positions.positions.append(50)
    spec = steered(steering_pb2.SteeringRule(vector="vectors/calm", strength=1, selector=selector))
    assert sorted(refusal(stub, spec).fields) == [
        "steering.rules[0].selector.include[0].phase",
        "steering.rules[0].selector.include[1].positions.positions[0]",
    ]


def test_an_unknown_vector_or_model_is_not_found(stub: Stub) -> None:
    refused = refusal(stub, steered(steering_pb2.SteeringRule(vector="vectors/absent")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert refused.fields == ["steering.rules[0].vector"]
    refused = refusal(stub, generation_pb2.GenerationSpec(text="hi", model="models/other"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.NOT_FOUND, ["model"])


def test_a_vector_without_that_block_or_contexts_does_not_apply(stub: Stub) -> None:
    trigger = steering_pb2.Trigger(context=steering_pb2.ContextTrigger())
    rule = steering_pb2.SteeringRule(vector="vectors/calm", layers=[2], trigger=trigger)
    refused = refusal(stub, steered(rule))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_APPLICABLE")
    assert sorted(refused.fields) == ["steering.rules[0].layers[0]", "steering.rules[0].trigger"]


def test_chat_without_a_template_does_not_apply(tmp_path: Path) -> None:
    message = generation_pb2.Message(role="user", content="hi")
    spec = generation_pb2.GenerationSpec(chat=generation_pb2.Chat(messages=[message]))
    with LiveServer(save_tiny_model(tmp_path / "m", chat=False)) as server, server.channel() as channel:
        refused = refusal(Stub(channel), spec)
    assert (refused.code, refused.fields) == (grpc.StatusCode.FAILED_PRECONDITION, ["chat"])


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ range(10 ** 9) }}", "{{ messages.nothing.more }}"])
def test_messages_that_lead_the_template_into_an_error_are_an_invalid_argument(
    tmp_path: Path, template: str
) -> None:
    folder = save_tiny_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(template)
    message = generation_pb2.Message(role="user", content="hi")
    spec = generation_pb2.GenerationSpec(chat=generation_pb2.Chat(messages=[message]))
    with LiveServer(folder) as server, server.channel() as channel:
        refused = refusal(Stub(channel), spec)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["chat.messages"])


def test_more_tokens_than_the_context_holds_are_an_invalid_argument(stub: Stub, live: LiveServer) -> None:
    room = live.model.info.facts.max_context_tokens
    sampling = generation_pb2.SamplingParams(max_token_count=room)
    refused = refusal(stub, generation_pb2.GenerationSpec(text="hi", sampling=sampling))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["sampling.max_token_count"])
    assert f"at most {room - 2} fit" in refused.message


def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/steering.v1.GenerationService/Generate")(b"\xff\xff\xff")
    assert failure(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_full_queue_says_when_to_try_again(model_folder: Path) -> None:
    with (
        LiveServer(model_folder, max_queued=2, max_queued_per_connection=2) as server,
        server.channel() as channel,
    ):
        stub = Stub(channel)
        request = generation_pb2.StreamGenerateRequest(
            spec=generation_pb2.GenerationSpec(text="hi", sampling=LONG)
        )
        running = [stub.StreamGenerate(request) for _ in range(2)]
        for call in running:
            next(call)
        refused = refusal(stub, generation_pb2.GenerationSpec(text="hi"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert refused.retry_seconds is not None
        assert f"try again in {refused.retry_seconds:.1f} s" in refused.message
        assert model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest()).model.name
        for call in running:
            call.cancel()
        server.wait_idle()
        short = generation_pb2.SamplingParams(max_token_count=1)
        again = generation_pb2.GenerateRequest(spec=generation_pb2.GenerationSpec(text="hi", sampling=short))
        wait_until(lambda: code_of(lambda: stub.Generate(again)) is grpc.StatusCode.OK)


def test_a_full_connection_is_refused_and_others_are_let_in(model_folder: Path) -> None:
    own = ("grpc.use_local_subchannel_pool", 1)
    with (
        LiveServer(model_folder, max_queued=4, max_queued_per_connection=2) as server,
        server.channel(own) as full,
        server.channel(own) as other,
    ):
        sampling = generation_pb2.SamplingParams(
            max_token_count=8000, min_token_count=8000, completion_count=2
        )
        spec = generation_pb2.GenerationSpec(text="hi", sampling=sampling)
        running = Stub(full).StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec))
        next(running)
        refused = refusal(Stub(full), generation_pb2.GenerationSpec(text="hi"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONNECTION_FULL")
        assert refused.retry_seconds is not None
        short = generation_pb2.SamplingParams(max_token_count=1)
        request = generation_pb2.GenerateRequest(
            spec=generation_pb2.GenerationSpec(text="hi", sampling=short)
        )
        assert Stub(other).Generate(request).results
        running.cancel()
        server.wait_idle()


def test_an_engine_that_stopped_is_unavailable(model_folder: Path) -> None:
    with LiveServer(model_folder) as server, server.channel() as channel:
        stub = Stub(channel)
        request = generation_pb2.StreamGenerateRequest(
            spec=generation_pb2.GenerationSpec(text="hi", sampling=LONG)
        )
        running = stub.StreamGenerate(request)
        next(running)
        server.close_engine()
        with pytest.raises(grpc.RpcError) as caught:
            list(running)
        lost = failure(caught.value)
        assert (lost.code, lost.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STOPPED")
        refused = refusal(stub, generation_pb2.GenerationSpec(text="hi"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STOPPED")


def test_a_stopping_server_is_unavailable_for_new_calls_and_finishes_the_running_ones(
    model_folder: Path,
) -> None:
    with LiveServer(model_folder, grace=60) as server, server.channel() as channel:
        stub = Stub(channel)
        sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=1000)
        request = generation_pb2.StreamGenerateRequest(
            spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling)
        )
        running = stub.StreamGenerate(request)
        next(running)
        server.begin_stop()
        models = model_pb2_grpc.ModelServiceStub(channel)
        unavailable = grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: code_of(lambda: models.GetModel(model_pb2.GetModelRequest())) is unavailable)
        refused = refusal(stub, generation_pb2.GenerationSpec(text="hi"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert list(running)[-1].HasField("result")


def test_steering_beyond_what_numbers_hold_ends_that_request_only(model_folder: Path, tmp_path: Path) -> None:
    with LiveServer(model_folder, vectors=tmp_path) as server, server.channel() as channel:
        save_random_vector(tmp_path, server.model.loaded, "huge", [1], strength=1e38)
        server.model.vectors.load_directory(tmp_path)
        refused = refusal(
            Stub(channel), steered(steering_pb2.SteeringRule(vector="vectors/huge", strength=1000))
        )
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NOT_FINITE")
        plain = generation_pb2.GenerationSpec(text="hi")
        assert Stub(channel).Generate(generation_pb2.GenerateRequest(spec=plain)).results[0].tokens


def test_deadlines_pass_through(stub: Stub, live: LiveServer) -> None:
    request = generation_pb2.GenerateRequest(spec=generation_pb2.GenerationSpec(text="hi", sampling=LONG))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(request, timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    live.wait_idle()


def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/steering.v1.GenerationService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_status_is_at_most_four_kibibytes_and_says_how_much_it_left_out(stub: Stub) -> None:
    rules = [
        steering_pb2.SteeringRule(vector="vectors/Ünfug " + "ä" * 70, layers=range(1000, 1040))
        for _ in range(16)
    ]
    spec = generation_pb2.GenerationSpec(
        text="hi", request_id="ü" * 128, steering=steering_pb2.SteeringSpec(rules=rules)
    )
    refused = refusal(stub, spec)
    assert refused.size <= table.MAX_STATUS_BYTES
    count = int(refused.message.split(" ", 1)[0])
    shown = len(refused.faults) - 1
    assert refused.faults[-1] == ("", f"and {count - shown} more")
    assert count > 200


def test_every_error_that_a_call_can_meet_has_a_row_of_its_own() -> None:
    at_start_only = {ModelError, server_errors.StartError, ConfigError}
    for base in (EngineError, server_errors.ServerError):
        for kind in _subclasses(base) - at_start_only:
            assert kind in table.STATUS, kind


def _subclasses(base: type[Exception]) -> set[type[Exception]]:
    direct = set(base.__subclasses__())
    return direct.union(*map(_subclasses, direct))


def test_reasons_are_unique_and_stable() -> None:
    assert sorted(reason for _, reason in table.STATUS.values()) == [
        "CONNECTION_FULL",
        "DRAINING",
        "ENGINE_STOPPED",
        "INTERNAL",
        "INVALID_REQUEST",
        "INVALID_VECTOR_FILE",
        "MISSING_SCOPE",
        "NOT_APPLICABLE",
        "NOT_FINITE",
        "NOT_FOUND",
        "NO_TOKEN",
        "QUEUE_FULL",
        "RESPONSE_TOO_LARGE",
        "SLOW_READER",
        "UNKNOWN_TOKEN",
        "VECTOR_EXISTS",
        "VECTOR_FOR_ANOTHER_MODEL",
        "VECTOR_MEMORY_FULL",
        "VECTOR_TABLE_FULL",
    ]


def test_a_request_too_large_to_be_read_at_once_is_refused_unread(channel: grpc.Channel) -> None:
    data = b"\x0a" + b"\x00" * limits.MAX_REQUEST_BYTES
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/steering.v1.GenerationService/Generate")(data)
    refused = failure(caught.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {limits.MAX_REQUEST_BYTES}" in refused.message


def test_every_completion_of_a_request_takes_a_place(model_folder: Path) -> None:
    with (
        LiveServer(model_folder, max_queued=3, max_queued_per_connection=3) as server,
        server.channel() as channel,
    ):
        stub = Stub(channel)
        sampling = generation_pb2.SamplingParams(
            max_token_count=4000, min_token_count=4000, completion_count=2
        )
        running = stub.StreamGenerate(
            generation_pb2.StreamGenerateRequest(
                spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling)
            )
        )
        next(running)
        refused = refusal(stub, generation_pb2.GenerationSpec(text="hi", sampling=sampling))
        assert refused.reason == "QUEUE_FULL"
        running.cancel()
        server.wait_idle()


def test_a_lone_surrogate_does_not_break_a_status() -> None:
    error = InvalidRequestError([Violation("text", "bad \ud800 text")])
    assert table.status_of(error, "r").message == "text: bad ? text"
