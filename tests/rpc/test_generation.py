"""Generate and StreamGenerate through a real channel."""

from __future__ import annotations

import grpc
import pytest

from steering.v1 import generation_pb2, generation_pb2_grpc, steering_pb2
from steering_spec import limits
from tests.support.fixtures import CONTEXT
from tests.support.server import LiveServer
from tests.support.statuses import failure

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
    [result] = stub.Generate(generation_pb2.GenerateRequest(spec=one)).results
    return result


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
            assert message.steering_event.trigger == generation_pb2.TRIGGER_KIND_UNSPECIFIED
            assert not message.steering_event.HasField("score")
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
    assert (event.trigger, event.score) == (generation_pb2.TRIGGER_KIND_CONTEXT, len(CONTEXT))
    assert list(event.layers) == [2]


def several(count: int, **fields: object) -> generation_pb2.GenerationSpec:
    sampling = generation_pb2.SamplingParams(seed=11, max_token_count=16, completion_count=count)
    return spec(sampling=sampling, **fields)


def test_several_completions_come_in_order_each_with_its_own_seed(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    results = stub.Generate(generation_pb2.GenerateRequest(spec=several(3))).results
    assert [(result.completion_index, result.seed) for result in results] == [(0, 11), (1, 12), (2, 13)]
    for result in results:
        alone = generate(
            stub, spec(sampling=generation_pb2.SamplingParams(seed=result.seed, max_token_count=16))
        )
        assert list(result.tokens) == list(alone.tokens)
        assert result.text == alone.text


def test_a_stream_of_several_completions_says_of_each_message_which_it_belongs_to(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    one = several(3, steering=rule(), steering_trace=True)
    whole = stub.Generate(generation_pb2.GenerateRequest(spec=one)).results
    messages = events(stub, one)
    results = [message.result for message in messages if message.WhichOneof("event") == "result"]
    assert sorted(result.completion_index for result in results) == [0, 1, 2]
    for index, expected in enumerate(whole):
        deltas = [
            message.delta
            for message in messages
            if message.WhichOneof("event") == "delta" and message.delta.completion_index == index
        ]
        acts = [
            message.steering_event
            for message in messages
            if message.WhichOneof("event") == "steering_event"
            and message.steering_event.completion_index == index
        ]
        [result] = [result for result in results if result.completion_index == index]
        assert list(result.tokens) == list(expected.tokens)
        assert [token for delta in deltas for token in delta.tokens] == list(expected.tokens)
        assert "".join(delta.text for delta in deltas) == result.text == expected.text
        assert acts == list(result.steering_events) == list(expected.steering_events)
        assert [act.completion_index for act in acts] == [index] * len(expected.tokens)


def test_a_stream_ends_with_the_last_of_its_completions(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    messages = events(stub, several(3))
    ended: set[int] = set()
    for message in messages:
        if message.WhichOneof("event") == "result":
            ended.add(message.result.completion_index)
        else:
            assert message.delta.completion_index not in ended
    assert messages[-1].WhichOneof("event") == "result"
    assert ended == {0, 1, 2}


def test_the_steering_that_was_applied_tells_its_operation_and_its_policy(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    asked = rule(
        operation=steering_pb2.Operation(add=steering_pb2.Add(norm_preserved=True)),
        selector=steering_pb2.Selector(
            include=[
                steering_pb2.Clause(
                    phase=steering_pb2.PHASE_GENERATION, tokens=steering_pb2.TokenSet(ids=[40, 41])
                )
            ]
        ),
    )
    asked.conflict_policy = steering_pb2.CONFLICT_POLICY_FIRST
    applied = generate(stub, spec(steering=asked)).applied_steering
    assert applied.conflict_policy == steering_pb2.CONFLICT_POLICY_FIRST
    assert applied.rules[0].operation == asked.rules[0].operation
    assert applied.rules[0].selector == asked.rules[0].selector


def test_what_can_not_be_read_and_what_can_not_be_run_is_told_at_once(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    steering = rule("absent", operation=steering_pb2.Operation(), strength=2000)
    sampling = generation_pb2.SamplingParams(completion_count=0, logit_bias={3: 2000.0})
    with pytest.raises(grpc.RpcError) as caught:
        generate(stub, spec(sampling=sampling, steering=steering))
    refused = failure(caught.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == [
        "steering.rules[0].operation",
        "sampling.completion_count",
        "sampling.logit_bias[3]",
        "steering.rules[0].strength",
        "steering.rules[0].vector",
    ]


def test_rules_that_could_meet_are_refused_where_the_request_says_so(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    steering = steering_pb2.SteeringSpec(
        rules=[
            steering_pb2.SteeringRule(vector="vectors/calm"),
            steering_pb2.SteeringRule(vector="vectors/pivot"),
            steering_pb2.SteeringRule(vector="vectors/calm", layers=[1]),
        ],
        conflict_policy=steering_pb2.CONFLICT_POLICY_REJECT,
    )
    with pytest.raises(grpc.RpcError) as caught:
        generate(stub, spec(steering=steering))
    refused = failure(caught.value)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["steering.rules[2]"])
    assert "may steer the same rows of block 1 as rules[0]" in refused.message


def test_a_probe_that_the_vector_has_not_is_a_failed_precondition(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    trigger = steering_pb2.Trigger(probe=steering_pb2.ProbeTrigger(threshold=0.5))
    with pytest.raises(grpc.RpcError) as caught:
        generate(stub, spec(steering=rule("calm", trigger=trigger)))
    refused = failure(caught.value)
    assert (refused.code, refused.fields) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        ["steering.rules[0].trigger.probe"],
    )


def test_completions_that_no_message_holds_are_refused_with_what_would_do(
    stub: generation_pb2_grpc.GenerationServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MESSAGE_BYTES", 2_000)
    sampling = generation_pb2.SamplingParams(max_token_count=400, min_token_count=400, completion_count=2)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(
            generation_pb2.GenerateRequest(spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling))
        )
    refused = failure(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert "stream them" in refused.message
