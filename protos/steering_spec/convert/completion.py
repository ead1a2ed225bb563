"""Answers: tokens, steering acts and completions, from and to protobuf."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from steering.v1 import generation_pb2
from steering_spec.completion import (
    Completion,
    FinishReason,
    SteeringAct,
    StreamDelta,
    Token,
    TokenLogprob,
    TriggerKind,
    Usage,
)
from steering_spec.convert.steering import read_steering, steering_to_proto
from steering_spec.steering import SteeringSpec
from steering_spec.violation import Violation

_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.STOP_SEQUENCE: generation_pb2.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}
# What this version has no name for comes from newer servers, and is written back as unspecified.
_UNSPECIFIED_REASON = generation_pb2.FINISH_REASON_UNSPECIFIED
_UNSPECIFIED_TRIGGER = generation_pb2.TRIGGER_KIND_UNSPECIFIED
_REASONS_BACK = {number: reason for reason, number in _REASONS.items()}
_TRIGGERS = {
    None: generation_pb2.TRIGGER_KIND_UNSPECIFIED,
    TriggerKind.CONTEXT: generation_pb2.TRIGGER_KIND_CONTEXT,
    TriggerKind.PROBE: generation_pb2.TRIGGER_KIND_PROBE,
    TriggerKind.SIMILARITY: generation_pb2.TRIGGER_KIND_SIMILARITY,
}
_TRIGGERS_BACK = {number: trigger for trigger, number in _TRIGGERS.items()}


def token_to_proto(token: Token) -> generation_pb2.Token:
    """Writes one generated token."""
    return generation_pb2.Token(
        id=token.id,
        logprob=token.logprob,
        top_logprobs=[
            generation_pb2.TokenLogprob(id=one.id, logprob=one.logprob) for one in token.top_logprobs
        ],
    )


def token_from_proto(message: generation_pb2.Token) -> Token:
    """Reads one generated token."""
    return Token(
        message.id, message.logprob, tuple(TokenLogprob(one.id, one.logprob) for one in message.top_logprobs)
    )


def act_to_proto(act: SteeringAct, completion_index: int) -> generation_pb2.SteeringEvent:
    """Writes one steering act of a completion."""
    message = generation_pb2.SteeringEvent(
        rule_index=act.rule_index,
        layers=act.layers,
        trigger=_TRIGGERS.get(act.trigger, _UNSPECIFIED_TRIGGER),
        score=act.score,
        completion_index=completion_index,
    )
    if act.step is not None:
        message.step = act.step
    if act.prompt_position is not None:
        message.prompt_position = act.prompt_position
    return message


def act_from_proto(message: generation_pb2.SteeringEvent) -> SteeringAct:
    """Reads one steering act; of which completion it is, the message itself says."""
    place = message.WhichOneof("place")
    return SteeringAct(
        rule_index=message.rule_index,
        layers=tuple(message.layers),
        step=message.step if place == "step" else None,
        prompt_position=message.prompt_position if place == "prompt_position" else None,
        trigger=_TRIGGERS_BACK.get(message.trigger, TriggerKind.UNKNOWN),
        score=message.score if message.HasField("score") else None,
    )


def delta_to_proto(delta: StreamDelta) -> generation_pb2.TokenDelta:
    """Writes newly decoded tokens; their acts travel as messages of their own."""
    return generation_pb2.TokenDelta(
        text=delta.text,
        tokens=[token_to_proto(token) for token in delta.tokens],
        completion_index=delta.index,
    )


def delta_from_proto(message: generation_pb2.TokenDelta, acts: tuple[SteeringAct, ...] = ()) -> StreamDelta:
    """Reads newly decoded tokens, with the acts that came before them."""
    return StreamDelta(
        message.text, tuple(map(token_from_proto, message.tokens)), acts, message.completion_index
    )


def completion_to_proto(completion: Completion) -> generation_pb2.GenerateResult:
    """Writes a finished completion."""
    usage = completion.usage
    message = generation_pb2.GenerateResult(
        text=completion.text,
        tokens=[token_to_proto(token) for token in completion.tokens],
        finish_reason=_REASONS.get(completion.finish_reason, _UNSPECIFIED_REASON),
        usage=generation_pb2.Usage(
            prompt_token_count=usage.prompt_tokens,
            generated_token_count=usage.generated_tokens,
            steered_row_count=usage.steered_rows,
            first_token_duration=_duration(usage.first_token_seconds),
            total_duration=_duration(usage.total_seconds),
        ),
        steering_events=[act_to_proto(act, completion.index) for act in completion.acts],
        seed=completion.seed,
        request_id=completion.request_id,
        completion_index=completion.index,
    )
    if completion.applied_steering is not None:
        message.applied_steering.CopyFrom(steering_to_proto(completion.applied_steering))
    return message


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def completion_from_proto(message: generation_pb2.GenerateResult) -> Completion:
    """Reads a finished completion."""
    usage = message.usage
    return Completion(
        text=message.text,
        tokens=tuple(map(token_from_proto, message.tokens)),
        finish_reason=_REASONS_BACK.get(message.finish_reason, FinishReason.UNKNOWN),
        usage=Usage(
            prompt_tokens=usage.prompt_token_count,
            generated_tokens=usage.generated_token_count,
            steered_rows=usage.steered_row_count,
            first_token_seconds=usage.first_token_duration.ToTimedelta().total_seconds(),
            total_seconds=usage.total_duration.ToTimedelta().total_seconds(),
        ),
        seed=message.seed,
        request_id=message.request_id,
        applied_steering=_applied_steering(message),
        acts=tuple(act_from_proto(act) for act in message.steering_events),
        index=message.completion_index,
    )


def _applied_steering(message: generation_pb2.GenerateResult) -> SteeringSpec | None:
    if not message.HasField("applied_steering"):
        return None
    faults: list[Violation] = []
    steering = read_steering(message.applied_steering, faults)
    return None if faults else steering
