"""The types of the contract survive protobuf, and what protobuf can't express is named."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.v1 import generation_pb2, steering_pb2
from steering_spec import (
    Add,
    Chat,
    ChatMessage,
    Clause,
    Completion,
    ContextTrigger,
    FinishReason,
    GenerationSpec,
    InvalidRequestError,
    ModelFacts,
    ModelInfo,
    Phase,
    Positions,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    StreamDelta,
    Token,
    Usage,
    VectorInfo,
    VectorLayer,
    Window,
    request_violations,
)
from steering_spec.convert.completion import (
    act_from_proto,
    act_to_proto,
    completion_from_proto,
    completion_to_proto,
    delta_from_proto,
    delta_to_proto,
)
from steering_spec.convert.request import (
    generation_spec_from_proto,
    generation_spec_to_proto,
    read_generation_spec,
    steering_from_proto,
    steering_to_proto,
)
from steering_spec.convert.resources import (
    model_from_proto,
    model_to_proto,
    vector_from_proto,
    vector_to_proto,
)

int32 = st.integers(-(2**31), 2**31 - 1)
count = st.integers(0, 2**31 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
float32 = st.floats(width=32, allow_nan=False)
name = st.from_regex(r"vectors/[a-z][a-z0-9-]{0,8}(@[0-9a-f]{64})?", fullmatch=True)


def tuples(of: st.SearchStrategy[object], max_size: int = 4) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=max_size).map(tuple)


clauses = st.builds(
    Clause,
    st.sampled_from(Phase),
    st.none() | st.builds(Positions, tuples(int32)) | st.builds(Window, int32, st.none() | int32),
)
rules = st.builds(
    SteeringRule,
    vector=name,
    strength=st.floats(allow_nan=False),
    layers=tuples(count),
    operation=st.builds(Add),
    selector=st.builds(Selector, tuples(clauses), tuples(clauses)),
    trigger=st.none() | st.builds(ContextTrigger, st.none() | count, count, count, st.none() | count),
)
steerings = st.builds(SteeringSpec, tuples(rules, 3))
prompts = (
    st.builds(PromptText, text)
    | st.builds(PromptIds, tuples(int32))
    | st.builds(Chat, tuples(st.builds(ChatMessage, text, text)), st.booleans())
)
samplings = st.builds(
    SamplingParams,
    temperature=float32,
    top_p=float32,
    top_k=st.none() | int32,
    max_tokens=st.none() | int32,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=tuples(text),
    min_p=float32,
    banned_first_ids=tuples(int32),
)
specs = st.builds(GenerationSpec, prompts, samplings, st.none() | steerings, text, text, st.booleans())
acts = st.builds(SteeringAct, count, tuples(count), step=count, match_tokens=st.none() | count) | st.builds(
    SteeringAct, count, tuples(count), prompt_position=count
)
tokens = st.builds(Token, count, float32)
seconds = st.integers(0, 10**12).map(lambda microseconds: microseconds / 1e6)
completions = st.builds(
    Completion,
    text=text,
    tokens=tuples(tokens),
    finish_reason=st.sampled_from(FinishReason),
    usage=st.builds(Usage, count, count, count, seconds, seconds),
    seed=st.integers(-(2**63), 2**63 - 1),
    request_id=text,
    applied_steering=st.none() | steerings,
    acts=tuples(acts),
)


@given(specs)
@settings(max_examples=200)
def test_a_request_survives_the_wire(spec: GenerationSpec) -> None:
    data = generation_spec_to_proto(spec).SerializeToString()
    assert generation_spec_from_proto(generation_pb2.GenerationSpec.FromString(data)) == spec


@given(specs)
def test_what_the_client_accepts_fits_onto_the_wire_and_is_accepted_by_the_server(
    spec: GenerationSpec,
) -> None:
    if not request_violations(spec):
        assert request_violations(generation_spec_from_proto(generation_spec_to_proto(spec))) == []


@given(steerings)
def test_steering_survives_the_wire(spec: SteeringSpec) -> None:
    assert steering_from_proto(steering_to_proto(spec)) == spec


@given(completions)
def test_a_completion_survives_the_wire(completion: Completion) -> None:
    data = completion_to_proto(completion).SerializeToString()
    assert completion_from_proto(generation_pb2.GenerateResult.FromString(data)) == completion


@given(acts)
def test_an_act_survives_the_wire(act: SteeringAct) -> None:
    assert act_from_proto(act_to_proto(act)) == act


@given(text, tuples(tokens), tuples(acts))
def test_a_delta_survives_the_wire_beside_its_acts(
    words: str, new: tuple[Token, ...], done: tuple[SteeringAct, ...]
) -> None:
    delta = StreamDelta(words, new, done)
    assert delta_from_proto(delta_to_proto(delta), done) == delta


def test_a_model_survives_the_wire() -> None:
    info = ModelInfo(
        ModelFacts("models/tiny", 3, 258, 64, 16, True), "Qwen3", 32, "float32", "c" * 64, "d" * 64
    )
    assert model_from_proto(model_to_proto(info)) == info


def test_a_vector_survives_the_wire() -> None:
    info = VectorInfo(
        "vectors/calm",
        "e" * 64,
        "one line",
        "tiny",
        (VectorLayer(0, 1.5, 10.0), VectorLayer(2, 0.1, 0.0)),
        32,
        "paired_difference",
        7,
        2,
        {"created": '"2026-01-01"'},
    )
    assert vector_from_proto(vector_to_proto(info)) == info


def test_a_bare_name_is_sent_as_a_resource_name() -> None:
    message = steering_to_proto(SteeringSpec((SteeringRule("calm"),)))
    assert message.rules[0].vector == "vectors/calm"


def test_an_empty_message_means_the_defaults() -> None:
    message = generation_pb2.GenerationSpec(text="x")
    assert generation_spec_from_proto(message) == GenerationSpec(PromptText("x"))
    rule = steering_pb2.SteeringRule(vector="vectors/calm")
    assert steering_from_proto(steering_pb2.SteeringSpec(rules=[rule])) == SteeringSpec(
        (SteeringRule("vectors/calm"),)
    )


def test_a_strength_of_zero_is_not_taken_for_unset() -> None:
    rule = steering_pb2.SteeringRule(vector="vectors/calm", strength=0.0)
    assert steering_from_proto(steering_pb2.SteeringSpec(rules=[rule])).rules[0].strength == 0.0


def test_everything_that_the_types_cannot_express_is_told_at_once() -> None:
    message = generation_pb2.GenerationSpec()
    rule = message.steering.rules.add(vector="vectors/calm")
    rule.operation.SetInParent()
    rule.trigger.SetInParent()
    rule.selector.include.add()
    rule.selector.exclude.add(phase=99)  # type: ignore[arg-type]  # a number of a newer client
    with pytest.raises(InvalidRequestError) as caught:
        generation_spec_from_proto(message)
    assert {one.field for one in caught.value.violations} == {
        "prompt",
        "steering.rules[0].operation",
        "steering.rules[0].trigger",
        "steering.rules[0].selector.include[0].phase",
        "steering.rules[0].selector.exclude[0].phase",
    }


def test_a_fault_leaves_the_rest_of_the_request_to_be_judged() -> None:
    message = generation_pb2.GenerationSpec()
    message.sampling.top_k = 0
    spec, faults = read_generation_spec(message)
    assert [one.field for one in [*faults, *request_violations(spec)]] == ["prompt", "sampling.top_k"]
