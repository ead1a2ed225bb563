"""Requests survive protobuf, and what the types can't express is named."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.v1 import generation_pb2, steering_pb2
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    GenerationSpec,
    InvalidRequestError,
    Phase,
    ProbeTrigger,
    PromptText,
    SamplingParams,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    request_violations,
)
from steering_spec.convert.request import (
    generation_spec_from_proto,
    generation_spec_to_proto,
    read_generation_spec,
)
from steering_spec.convert.steering import steering_from_proto, steering_to_proto
from tests.support.specs import specs, steerings

CALM = "vectors/calm"


def read_rule(**fields: object) -> SteeringRule:
    rule = steering_pb2.SteeringRule(**{"vector": CALM, **fields})
    return steering_from_proto(steering_pb2.SteeringSpec(rules=[rule])).rules[0]


@given(specs)
@settings(max_examples=200)
def test_a_request_survives_the_wire(spec: GenerationSpec) -> None:
    data = generation_spec_to_proto(spec).SerializeToString()
    assert generation_spec_from_proto(generation_pb2.GenerationSpec.FromString(data)) == spec


@given(steerings)
def test_steering_survives_the_wire(spec: SteeringSpec) -> None:
    assert steering_from_proto(steering_to_proto(spec)) == spec


@given(specs)
def test_what_the_client_finds_in_a_request_the_server_finds_too(spec: GenerationSpec) -> None:
    read = generation_spec_from_proto(generation_spec_to_proto(spec))
    assert request_violations(read) == request_violations(spec)


@given(
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 100),
        top_p=st.floats(0, 1, exclude_min=True),
        repetition_penalty=st.floats(0.01, 100),
        logit_bias=st.floats(-1000, 1000).map(lambda bias: ((3, bias),)),
    )
)
def test_sampling_that_the_client_accepts_is_accepted_by_the_server(sampling: SamplingParams) -> None:
    spec = GenerationSpec(PromptText("x"), sampling)
    assert request_violations(spec) == []
    assert request_violations(generation_spec_from_proto(generation_spec_to_proto(spec))) == []


def test_biases_come_back_in_the_order_of_their_ids() -> None:
    spec = GenerationSpec(PromptText("x"), SamplingParams(logit_bias=((5, 1.0), (2, -1.0))))
    read = generation_spec_from_proto(generation_spec_to_proto(spec))
    assert read.sampling.logit_bias == ((2, -1.0), (5, 1.0))


def test_a_bare_name_is_sent_as_a_resource_name() -> None:
    message = steering_to_proto(SteeringSpec((SteeringRule("calm"),)))
    assert message.rules[0].vector == CALM


def test_an_empty_message_means_the_defaults() -> None:
    message = generation_pb2.GenerationSpec(text="x")
    assert generation_spec_from_proto(message) == GenerationSpec(PromptText("x"))
    assert steering_from_proto(steering_pb2.SteeringSpec()) == SteeringSpec(())
    assert read_rule() == SteeringRule(CALM)
    add = steering_pb2.Operation(add=steering_pb2.Add())
    assert read_rule(operation=add).operation == Add()
    clamp = steering_pb2.Operation(clamp=steering_pb2.Clamp())
    assert read_rule(operation=clamp).operation == Clamp()


@pytest.mark.parametrize(
    ("condition", "trigger"),
    [
        ({"context": steering_pb2.ContextTrigger()}, ContextTrigger()),
        ({"probe": steering_pb2.ProbeTrigger()}, ProbeTrigger()),
        ({"similarity": steering_pb2.SimilarityTrigger()}, SimilarityTrigger()),
    ],
)
def test_an_empty_trigger_means_its_defaults(
    condition: dict[str, object], trigger: ContextTrigger | ProbeTrigger | SimilarityTrigger
) -> None:
    assert read_rule(trigger=steering_pb2.Trigger(**condition)).trigger == trigger  # type: ignore[arg-type]


def test_zeros_are_not_taken_for_unset() -> None:
    assert read_rule(strength=0.0).strength == 0.0
    clamp = steering_pb2.Operation(clamp=steering_pb2.Clamp(min=0.0, max=0.0))
    assert read_rule(operation=clamp).operation == Clamp(0.0, 0.0)
    probe = steering_pb2.ProbeTrigger(layer=0, threshold=0.0, hold_step_count=0)
    read = read_rule(trigger=steering_pb2.Trigger(probe=probe, max_firing_count=0)).trigger
    assert read == ProbeTrigger(0, 0.0, 0, 0, 0)
    message = generation_pb2.GenerationSpec(text="x")
    message.sampling.completion_count = 0
    message.sampling.repetition_penalty = 0.0
    sampling = generation_spec_from_proto(message).sampling
    assert (sampling.n, sampling.repetition_penalty) == (0, 0.0)


def test_everything_that_the_types_cannot_express_is_told_at_once() -> None:
    message = generation_pb2.GenerationSpec()
    message.steering.conflict_policy = 99  # type: ignore[assignment]  # a number of a newer client
    rule = message.steering.rules.add(vector=CALM)
    rule.operation.SetInParent()
    rule.trigger.SetInParent()
    rule.selector.include.add()
    rule.selector.exclude.add(phase=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError) as caught:
        generation_spec_from_proto(message)
    assert [one.field for one in caught.value.violations] == [
        "prompt",
        "steering.rules[0].selector.include[0].phase",
        "steering.rules[0].selector.exclude[0].phase",
        "steering.rules[0].operation",
        "steering.rules[0].trigger",
        "steering.conflict_policy",
    ]


def test_a_fault_leaves_the_rest_of_the_request_to_be_judged() -> None:
    message = generation_pb2.GenerationSpec()
    message.sampling.top_k = 0
    rule = message.steering.rules.add(vector=CALM, strength=math.inf)
    rule.selector.include.add()
    spec, faults = read_generation_spec(message)
    assert [one.field for one in [*faults, *request_violations(spec)]] == [
        "prompt",
        "steering.rules[0].selector.include[0].phase",
        "sampling.top_k",
        "steering.rules[0].strength",
    ]


def test_what_stands_for_a_fault_is_found_nothing_wrong_with() -> None:
    message = generation_pb2.GenerationSpec()
    message.steering.conflict_policy = steering_pb2.CONFLICT_POLICY_REJECT
    for _ in range(2):
        rule = message.steering.rules.add(vector=CALM)
        rule.operation.SetInParent()
        rule.trigger.SetInParent()
        rule.selector.include.add()
        rule.selector.include.add(phase=steering_pb2.PHASE_GENERATION)
        rule.selector.exclude.add()
    spec, faults = read_generation_spec(message)
    assert len(faults) == 9
    assert request_violations(spec) == []


def test_no_policy_means_one_after_the_other() -> None:
    assert steering_from_proto(steering_pb2.SteeringSpec()).conflict_policy is ConflictPolicy.SEQUENTIAL


@pytest.mark.parametrize(
    "spec",
    [
        GenerationSpec(PromptText("x"), SamplingParams(stop="END")),  # type: ignore[arg-type]
        GenerationSpec(PromptText("x"), steering=SteeringSpec((SteeringRule("v", operation=Ablate),))),  # type: ignore[arg-type]
        GenerationSpec(
            PromptText("x"),
            steering=SteeringSpec(
                (SteeringRule("v", selector=Selector((Clause(Phase.GENERATION, [0, 3]),))),)
            ),  # type: ignore[arg-type]
        ),
        GenerationSpec(PromptText("x"), steering=SteeringSpec((SteeringRule("v", trigger="probe"),))),  # type: ignore[arg-type]
    ],
    ids=["a text for stop", "a class for an operation", "a list for a predicate", "a text for a trigger"],
)
def test_what_is_of_another_type_is_never_sent_as_something_else(spec: GenerationSpec) -> None:
    with pytest.raises(TypeError, match="is a"):
        generation_spec_to_proto(spec)
