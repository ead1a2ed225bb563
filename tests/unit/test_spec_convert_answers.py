"""Answers and descriptions survive protobuf."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from steering.v1 import generation_pb2, model_pb2, vector_pb2
from steering_spec import (
    Chat,
    ChatMessage,
    Completion,
    DetokenizeSpec,
    FinishReason,
    ModelFacts,
    ModelInfo,
    PromptText,
    ServerStats,
    SteeringAct,
    StreamDelta,
    Token,
    TokenizeSpec,
    TokenLogprob,
    TriggerKind,
    Usage,
    VectorCentroids,
    VectorInfo,
    VectorLayer,
    VectorProbe,
)
from steering_spec.convert.completion import (
    act_from_proto,
    act_to_proto,
    completion_from_proto,
    completion_to_proto,
    delta_from_proto,
    delta_to_proto,
)
from steering_spec.convert.resources import (
    model_from_proto,
    model_to_proto,
    vector_from_proto,
    vector_to_proto,
)
from steering_spec.convert.stats import stats_from_proto, stats_to_proto
from steering_spec.convert.tokenizing import (
    detokenize_from_proto,
    detokenize_to_proto,
    tokenize_from_proto,
    tokenize_to_proto,
)
from tests.support.specs import count, float32, float64, int32, int64, name, steerings, text, tuples

acts = st.builds(
    SteeringAct,
    count,
    tuples(count),
    step=count,
    trigger=st.none() | st.sampled_from([kind for kind in TriggerKind if kind is not TriggerKind.UNKNOWN]),
    score=st.none() | float64,
) | st.builds(SteeringAct, count, tuples(count), prompt_position=count)
tokens = st.builds(Token, count, float32, tuples(st.builds(TokenLogprob, count, float32)))
seconds = st.integers(0, 10**12).map(lambda microseconds: microseconds / 1e6)
completions = st.builds(
    Completion,
    text=text,
    tokens=tuples(tokens),
    finish_reason=st.sampled_from(FinishReason),
    usage=st.builds(Usage, count, count, count, seconds, seconds),
    seed=int64,
    request_id=text,
    applied_steering=st.none() | steerings,
    acts=tuples(acts),
    index=count,
)


@given(completions)
def test_a_completion_survives_the_wire(completion: Completion) -> None:
    data = completion_to_proto(completion).SerializeToString()
    assert completion_from_proto(generation_pb2.GenerateResult.FromString(data)) == completion


@given(completions)
def test_the_acts_of_a_completion_say_of_which_it_is(completion: Completion) -> None:
    events = completion_to_proto(completion).steering_events
    assert [event.completion_index for event in events] == [completion.index] * len(completion.acts)


@given(acts, count)
def test_an_act_survives_the_wire_beside_its_completions_index(act: SteeringAct, index: int) -> None:
    message = act_to_proto(act, index)
    assert act_from_proto(message) == act
    assert message.completion_index == index


@given(text, tuples(tokens), tuples(acts), count)
def test_a_delta_survives_the_wire_beside_its_acts(
    words: str, new: tuple[Token, ...], done: tuple[SteeringAct, ...], index: int
) -> None:
    delta = StreamDelta(words, new, done, index)
    assert delta_from_proto(delta_to_proto(delta), done) == delta


def test_what_only_a_newer_server_knows_is_read_as_unknown() -> None:
    message = generation_pb2.GenerateResult(text="done", finish_reason=99)  # type: ignore[arg-type]
    message.steering_events.add(trigger=98)  # type: ignore[arg-type]
    message.applied_steering.rules.add(vector="vectors/calm").operation.SetInParent()
    read = completion_from_proto(generation_pb2.GenerateResult.FromString(message.SerializeToString()))
    assert read.finish_reason is FinishReason.UNKNOWN
    assert [act.trigger for act in read.acts] == [TriggerKind.UNKNOWN]
    assert read.applied_steering is None
    assert read.text == "done"


def test_a_model_survives_the_wire() -> None:
    info = ModelInfo(
        ModelFacts("models/tiny", 3, 258, 64, 16, True), "Qwen3", 32, "float32", "c" * 64, "d" * 64
    )
    assert model_from_proto(model_to_proto(info)) == info


PLAIN_VECTOR = VectorInfo(
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


blocks = st.integers(0, 1000)
vectors = st.builds(
    VectorInfo,
    name=name,
    sha256=text,
    description=text,
    model=text,
    layers=tuples(st.builds(VectorLayer, blocks, float64, float64)),
    hidden_size=count,
    method=text,
    context_count=count,
    min_match_tokens=count,
    metadata=st.dictionaries(text, text, max_size=3),
    probes=tuples(st.builds(VectorProbe, blocks, st.none() | float64, st.none() | float64)),
    centroids=tuples(st.builds(VectorCentroids, blocks, count, st.none() | float64)),
    running_requests=count,
    memory_bytes=st.integers(0, 2**63 - 1),
)


@given(vectors)
def test_any_vector_survives_the_wire(info: VectorInfo) -> None:
    data = vector_to_proto(info).SerializeToString()
    assert vector_from_proto(vector_pb2.Vector.FromString(data)) == info


def test_a_vector_says_whether_its_name_means_it_and_how_it_is_pinned() -> None:
    assert (PLAIN_VECTOR.current, PLAIN_VECTOR.pinned_name) == (True, f"vectors/calm@{'e' * 64}")
    older = replace(PLAIN_VECTOR, name=PLAIN_VECTOR.pinned_name)
    assert (older.current, older.pinned_name) == (False, older.name)


large = st.integers(0, 2**63 - 1)
stats = st.builds(
    ServerStats,
    versions=st.dictionaries(text, text, max_size=3),
    started=st.datetimes(timezones=st.just(UTC)),
    uptime_seconds=seconds,
    serving=st.booleans(),
    device=text,
    running_completions=count,
    queued_requests=count,
    unfinished_completions=count,
    unfinished_limit=count,
    cache_page_tokens=count,
    cache_pages=count,
    used_cache_pages=count,
    generated_tokens=large,
    steered_rows=large,
    vectors=count,
    vector_memory_bytes=large,
    vector_memory_limit_bytes=large,
    used_vector_rows=count,
    vector_rows=count,
)


@given(stats)
def test_the_stats_of_a_server_survive_the_wire(told: ServerStats) -> None:
    data = stats_to_proto(told).SerializeToString()
    assert stats_from_proto(model_pb2.ServerStats.FromString(data)) == told


chats = st.builds(Chat, tuples(st.builds(ChatMessage, text, text)), st.booleans())


@given(st.builds(TokenizeSpec, st.builds(PromptText, text) | chats, text))
def test_what_is_to_be_tokenized_survives_the_wire(spec: TokenizeSpec) -> None:
    data = tokenize_to_proto(spec).SerializeToString()
    assert tokenize_from_proto(model_pb2.TokenizeRequest.FromString(data)) == spec


@given(st.builds(DetokenizeSpec, tuples(int32), st.booleans(), text))
def test_ids_that_are_to_become_text_survive_the_wire(spec: DetokenizeSpec) -> None:
    data = detokenize_to_proto(spec).SerializeToString()
    assert detokenize_from_proto(model_pb2.DetokenizeRequest.FromString(data)) == spec


def test_a_vector_survives_the_wire() -> None:
    data = vector_to_proto(PLAIN_VECTOR).SerializeToString()
    assert vector_from_proto(vector_pb2.Vector.FromString(data)) == PLAIN_VECTOR


def test_probes_and_centroids_survive_the_wire_with_what_they_leave_unsaid() -> None:
    info = replace(
        PLAIN_VECTOR,
        probes=(VectorProbe(0, 0.25, 0.9), VectorProbe(1, None, 0.0), VectorProbe(2, 0.5, None)),
        centroids=(VectorCentroids(0, 3, -1.0), VectorCentroids(2, 1024, None)),
    )
    data = vector_to_proto(info).SerializeToString()
    assert vector_from_proto(vector_pb2.Vector.FromString(data)) == info
