"""Generate and StreamGenerate through a real channel."""

from __future__ import annotations

import grpc
import pytest

from steering.v1 import generation_pb2, generation_pb2_grpc, steering_pb2
from tests.support.fixtures import CONTEXT
from tests.support.server import LiveServer

GREEDY = generation_pb2.SamplingParams(temperature=0, max_token_count=24)


@pytest.fixture
def stub(channel: grpc.Channel) -> generation_pb2_grpc.GenerationServiceStub:
    return generation_pb2_grpc.GenerationServiceStub(channel)


def spec(**fields: object) -> generation_pb2.GenerationSpec:
    return generation_pb2.GenerationSpec(**{"text": "two plus two", "sampling": GREEDY, **fields})


def rule(vector: str = "calm", **fields: object) -> steering_pb2.SteeringSpec:
    return steering_pb2.SteeringSpec(
        rules=[steering_pb2.SteeringRule(**{"vector": f"vectors/{vector}", **fields})]
    )


def generate(
    stub: generation_pb2_grpc.GenerationServiceStub, one: generation_pb2.GenerationSpec
) -> generation_pb2.GenerateResult:
    return stub.Generate(generation_pb2.GenerateRequest(spec=one)).result


def events(
    stub: generation_pb2_grpc.GenerationServiceStub, one: generation_pb2.GenerationSpec
) -> list[generation_pb2.StreamGenerateResponse]:
    return list(stub.StreamGenerate(generation_pb2.StreamGenerateRequest(spec=one)))


def test_the_result_tells_everything_about_the_completion(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    result = generate(stub, spec(request_id="mine"))
    assert len(result.tokens) == 24
    assert result.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert result.request_id == "mine"
    assert result.usage.prompt_token_count == len("two plus two")
    assert result.usage.generated_token_count == 24
    assert result.usage.steered_row_count == 0
    assert result.usage.first_token_duration.ToTimedelta().total_seconds() > 0
    assert result.usage.first_token_duration.ToTimedelta() <= result.usage.total_duration.ToTimedelta()
    assert not result.HasField("applied_steering")


def test_a_request_without_an_id_gets_one(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    first, second = generate(stub, spec()), generate(stub, spec())
    assert first.request_id
    assert first.request_id != second.request_id


def test_text_ids_and_chat_are_prompts(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    text = generate(stub, spec(text="[user]hi[end][assistant]"))
    message = generation_pb2.Message(role="user", content="hi")
    chat = generate(
        stub,
        generation_pb2.GenerationSpec(chat=generation_pb2.Chat(messages=[message]), sampling=GREEDY),
    )
    assert list(chat.tokens) == list(text.tokens)
    ids = generation_pb2.TokenIds(ids=[40, 41])
    tokens = generate(stub, generation_pb2.GenerationSpec(tokens=ids, sampling=GREEDY))
    assert tokens.usage.prompt_token_count == 2


def test_the_deltas_of_a_stream_add_up_to_its_result(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    messages = events(stub, spec(sampling=generation_pb2.SamplingParams(seed=5, max_token_count=64)))
    deltas = [message.delta for message in messages if message.WhichOneof("event") == "delta"]
    assert [message.WhichOneof("event") for message in messages[-1:]] == ["result"]
    result = messages[-1].result
    assert "".join(delta.text for delta in deltas) == result.text
    assert [token for delta in deltas for token in delta.tokens] == list(result.tokens)
    assert len(deltas) > 1


def test_a_stream_gives_what_one_answer_gives(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    one = spec(sampling=generation_pb2.SamplingParams(seed=7, max_token_count=32), steering=rule())
    streamed, whole = events(stub, one)[-1].result, generate(stub, one)
    assert list(streamed.tokens) == list(whole.tokens)
    assert streamed.text == whole.text
    assert streamed.seed == whole.seed == 7
    assert streamed.applied_steering == whole.applied_steering


def test_steering_acts_and_says_what_it_did(
    stub: generation_pb2_grpc.GenerationServiceStub, live: LiveServer
) -> None:
    plain = generate(stub, spec())
    steered = generate(stub, spec(steering=rule(strength=2.0)))
    assert [token.id for token in steered.tokens] != [token.id for token in plain.tokens]
    assert steered.usage.steered_row_count == 24
    [applied] = steered.applied_steering.rules
    digest = next(info.sha256 for info in live.model.vectors.infos() if info.name == "vectors/calm")
    assert applied.vector == f"vectors/calm@{digest}"
    assert list(applied.layers) == [0, 1]


def test_strength_zero_changes_nothing(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    assert list(generate(stub, spec(steering=rule(strength=0))).tokens) == list(generate(stub, spec()).tokens)


def test_without_a_trace_no_events_are_sent(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    messages = events(stub, spec(steering=rule()))
    assert {message.WhichOneof("event") for message in messages} == {"delta", "result"}
    assert not messages[-1].result.steering_events


def test_events_come_before_the_delta_of_the_token_they_changed(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    messages = events(stub, spec(steering=rule(), steering_trace=True))
    token_count = 0
    steps = []
    for message in messages:
        if message.WhichOneof("event") == "steering_event":
            steps.append(message.steering_event.step)
            assert message.steering_event.step >= token_count
            assert list(message.steering_event.layers) == [0, 1]
        elif message.WhichOneof("event") == "delta":
            token_count += len(message.delta.tokens)
            assert steps[:token_count] == list(range(token_count))
    assert [event.step for event in messages[-1].result.steering_events] == steps


def test_a_context_trigger_fires_where_its_context_ends(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    trigger = steering_pb2.Trigger(context=steering_pb2.ContextTrigger(), max_firing_count=1)
    ids = generation_pb2.TokenIds(ids=[99, *CONTEXT])
    one = generation_pb2.GenerationSpec(
        tokens=ids, sampling=GREEDY, steering=rule("pivot", trigger=trigger), steering_trace=True
    )
    [event] = generate(stub, one).steering_events
    assert event.step == 0
    assert event.match_token_count == len(CONTEXT)
    assert list(event.layers) == [2]
