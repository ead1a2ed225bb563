"""Triggers, from and to protobuf."""

from __future__ import annotations

from steering.v1 import steering_pb2
from steering_spec.steering import ContextTrigger, ProbeTrigger, SimilarityTrigger, Trigger
from steering_spec.violation import Violation


def trigger_from_proto(message: steering_pb2.Trigger, path: str, faults: list[Violation]) -> Trigger | None:
    """Reads a trigger; one without a condition is added to `faults`, and stands for none."""
    max_firings = message.max_firing_count if message.HasField("max_firing_count") else None
    match message.WhichOneof("condition"):
        case "context":
            context = message.context
            minimum = context.min_match_token_count if context.HasField("min_match_token_count") else None
            return ContextTrigger(minimum, _hold(context), _cooldown(context), max_firings)
        case "probe":
            probe = message.probe
            layer = probe.layer if probe.HasField("layer") else None
            threshold = probe.threshold if probe.HasField("threshold") else None
            return ProbeTrigger(layer, threshold, _hold(probe), _cooldown(probe), max_firings)
        case "similarity":
            similarity = message.similarity
            layer = similarity.layer if similarity.HasField("layer") else None
            cosine = similarity.min_cosine if similarity.HasField("min_cosine") else None
            return SimilarityTrigger(layer, cosine, _hold(similarity), _cooldown(similarity), max_firings)
        case _:
            faults.append(Violation(path, "no condition; set one or leave the field unset"))
            return None


_Condition = steering_pb2.ContextTrigger | steering_pb2.ProbeTrigger | steering_pb2.SimilarityTrigger


def _hold(message: _Condition) -> int:
    return message.hold_step_count if message.HasField("hold_step_count") else 1


def _cooldown(message: _Condition) -> int:
    return message.cooldown_step_count if message.HasField("cooldown_step_count") else 0


def trigger_to_proto(trigger: Trigger) -> steering_pb2.Trigger:
    """Writes a trigger."""
    message = steering_pb2.Trigger(max_firing_count=getattr(trigger, "max_firings", None))
    match trigger:
        case ContextTrigger():
            message.context.CopyFrom(
                steering_pb2.ContextTrigger(
                    min_match_token_count=trigger.min_match_tokens,
                    hold_step_count=trigger.hold_steps,
                    cooldown_step_count=trigger.cooldown_steps,
                )
            )
        case ProbeTrigger():
            message.probe.CopyFrom(
                steering_pb2.ProbeTrigger(
                    layer=trigger.layer,
                    threshold=trigger.threshold,
                    hold_step_count=trigger.hold_steps,
                    cooldown_step_count=trigger.cooldown_steps,
                )
            )
        case SimilarityTrigger():
            message.similarity.CopyFrom(
                steering_pb2.SimilarityTrigger(
                    layer=trigger.layer,
                    min_cosine=trigger.min_cosine,
                    hold_step_count=trigger.hold_steps,
                    cooldown_step_count=trigger.cooldown_steps,
                )
            )
        case _:
            raise TypeError(
                f"a trigger is a ContextTrigger, ProbeTrigger or SimilarityTrigger; got {trigger!r:.80}"
            )
    return message
