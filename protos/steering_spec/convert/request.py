"""Requests: `GenerationSpec` and `SteeringSpec`, from and to protobuf."""

from __future__ import annotations

from steering.v1 import generation_pb2, steering_pb2
from steering_spec.request import (
    Chat,
    ChatMessage,
    GenerationSpec,
    Prompt,
    PromptIds,
    PromptText,
    SamplingParams,
)
from steering_spec.steering import (
    Add,
    Clause,
    ContextTrigger,
    Phase,
    Positions,
    Selector,
    SteeringRule,
    SteeringSpec,
    Window,
)
from steering_spec.violation import InvalidRequestError, Violation

_PHASES = {Phase.PROMPT: steering_pb2.PHASE_PROMPT, Phase.GENERATION: steering_pb2.PHASE_GENERATION}
_PHASES_BACK = {number: phase for phase, number in _PHASES.items()}


def generation_spec_from_proto(message: generation_pb2.GenerationSpec) -> GenerationSpec:
    """Reads a request.

    Raises:
        InvalidRequestError: Something can't be expressed in the types; all such faults at once.
    """
    spec, faults = read_generation_spec(message)
    if faults:
        raise InvalidRequestError(faults)
    return spec


def read_generation_spec(message: generation_pb2.GenerationSpec) -> tuple[GenerationSpec, list[Violation]]:
    """Reads a request, and says what of it can't be expressed in the types.

    In the place of every fault stands something that admission finds nothing wrong with, so that the rest of a
    faulty request can still be judged and all that is wrong with it be said at once.
    """
    faults: list[Violation] = []
    prompt = _prompt_from_proto(message, faults)
    steering = _steering_from_proto(message.steering, faults) if message.HasField("steering") else None
    spec = GenerationSpec(
        prompt=prompt,
        sampling=_sampling_from_proto(message.sampling),
        steering=steering,
        model=message.model,
        request_id=message.request_id,
        steering_trace=message.steering_trace,
    )
    return spec, faults


def _prompt_from_proto(message: generation_pb2.GenerationSpec, faults: list[Violation]) -> Prompt:
    kind = message.WhichOneof("prompt")
    if kind == "tokens":
        return PromptIds(tuple(message.tokens.ids))
    if kind == "chat":
        messages = tuple(ChatMessage(one.role, one.content) for one in message.chat.messages)
        return Chat(messages, message.chat.final_message_open)
    if kind is None:
        faults.append(Violation("prompt", "no prompt; set one of text, tokens, chat"))
        return PromptText(" ")
    return PromptText(message.text)


def _sampling_from_proto(message: generation_pb2.SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k if message.HasField("top_k") else None,
        max_tokens=message.max_token_count if message.HasField("max_token_count") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop_sequences),
        min_p=message.min_p if message.HasField("min_p") else 0.0,
        banned_first_ids=tuple(message.banned_first_ids),
    )


def steering_from_proto(message: steering_pb2.SteeringSpec) -> SteeringSpec:
    """Reads a steering spec.

    Raises:
        InvalidRequestError: Something can't be expressed in the types; all such faults at once.
    """
    faults: list[Violation] = []
    spec = _steering_from_proto(message, faults)
    if faults:
        raise InvalidRequestError(faults)
    return spec


def _steering_from_proto(message: steering_pb2.SteeringSpec, faults: list[Violation]) -> SteeringSpec:
    return SteeringSpec(
        tuple(_rule_from_proto(rule, f"steering.rules[{i}]", faults) for i, rule in enumerate(message.rules))
    )


def _rule_from_proto(message: steering_pb2.SteeringRule, path: str, faults: list[Violation]) -> SteeringRule:
    if message.HasField("operation") and message.operation.WhichOneof("kind") is None:
        faults.append(Violation(f"{path}.operation", "no operation; set one or leave the field unset"))
    selector = Selector.every_step()
    if message.HasField("selector"):
        clauses = {
            name: tuple(
                _clause_from_proto(clause, f"{path}.selector.{name}[{i}]", faults)
                for i, clause in enumerate(getattr(message.selector, name))
            )
            for name in ("include", "exclude")
        }
        selector = Selector(**clauses)
    return SteeringRule(
        vector=message.vector,
        strength=message.strength if message.HasField("strength") else 1.0,
        layers=tuple(message.layers),
        operation=Add(),
        selector=selector,
        trigger=_trigger_from_proto(message.trigger, path, faults) if message.HasField("trigger") else None,
    )


def _clause_from_proto(message: steering_pb2.Clause, path: str, faults: list[Violation]) -> Clause:
    phase = _PHASES_BACK.get(message.phase)
    if phase is None:
        faults.append(Violation(f"{path}.phase", "no phase; expected PHASE_PROMPT or PHASE_GENERATION"))
        return Clause(Phase.GENERATION)
    kind = message.WhichOneof("predicate")
    if kind == "positions":
        return Clause(phase, Positions(tuple(message.positions.positions)))
    if kind == "range":
        end = message.range.end if message.range.HasField("end") else None
        return Clause(phase, Window(message.range.start, end))
    return Clause(phase)


def _trigger_from_proto(
    message: steering_pb2.Trigger, path: str, faults: list[Violation]
) -> ContextTrigger | None:
    if message.WhichOneof("condition") is None:
        faults.append(Violation(f"{path}.trigger", "no condition; set one or leave the field unset"))
        return None
    context = message.context
    return ContextTrigger(
        min_match_tokens=context.min_match_token_count if context.HasField("min_match_token_count") else None,
        hold_steps=context.hold_step_count if context.HasField("hold_step_count") else 1,
        cooldown_steps=context.cooldown_step_count if context.HasField("cooldown_step_count") else 0,
        max_firings=message.max_firing_count if message.HasField("max_firing_count") else None,
    )


def generation_spec_to_proto(spec: GenerationSpec) -> generation_pb2.GenerationSpec:
    """Writes a request.

    Raises:
        ValueError: A number does not fit its field (protobuf's own message says which).
    """
    message = generation_pb2.GenerationSpec(
        model=spec.model, request_id=spec.request_id, steering_trace=spec.steering_trace
    )
    if isinstance(spec.prompt, PromptText):
        message.text = spec.prompt.text
    elif isinstance(spec.prompt, PromptIds):
        message.tokens.ids.extend(spec.prompt.ids)
        message.tokens.SetInParent()
    else:
        message.chat.final_message_open = spec.prompt.final_message_open
        message.chat.SetInParent()
        for one in spec.prompt.messages:
            message.chat.messages.add(role=one.role, content=one.content)
    message.sampling.CopyFrom(_sampling_to_proto(spec.sampling))
    if spec.steering is not None:
        message.steering.CopyFrom(steering_to_proto(spec.steering))
    return message


def _sampling_to_proto(sampling: SamplingParams) -> generation_pb2.SamplingParams:
    return generation_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_token_count=sampling.max_tokens,
        seed=sampling.seed,
        stop_sequences=sampling.stop,
        min_p=sampling.min_p,
        banned_first_ids=sampling.banned_first_ids,
    )


def steering_to_proto(spec: SteeringSpec) -> steering_pb2.SteeringSpec:
    """Writes a steering spec."""
    return steering_pb2.SteeringSpec(rules=[_rule_to_proto(rule) for rule in spec.rules])


def _rule_to_proto(rule: SteeringRule) -> steering_pb2.SteeringRule:
    message = steering_pb2.SteeringRule(
        vector=rule.vector if rule.vector.startswith("vectors/") else f"vectors/{rule.vector}",
        strength=rule.strength,
        layers=rule.layers,
        operation=steering_pb2.Operation(add=steering_pb2.Add()),
        selector=steering_pb2.Selector(
            include=[_clause_to_proto(clause) for clause in rule.selector.include],
            exclude=[_clause_to_proto(clause) for clause in rule.selector.exclude],
        ),
    )
    if rule.trigger is not None:
        message.trigger.CopyFrom(
            steering_pb2.Trigger(
                context=steering_pb2.ContextTrigger(
                    min_match_token_count=rule.trigger.min_match_tokens,
                    hold_step_count=rule.trigger.hold_steps,
                    cooldown_step_count=rule.trigger.cooldown_steps,
                ),
                max_firing_count=rule.trigger.max_firings,
            )
        )
    return message


def _clause_to_proto(clause: Clause) -> steering_pb2.Clause:
    message = steering_pb2.Clause(phase=_PHASES[clause.phase])
    if isinstance(clause.predicate, Positions):
        message.positions.positions.extend(clause.predicate.positions)
        message.positions.SetInParent()
    elif isinstance(clause.predicate, Window):
        message.range.CopyFrom(
            steering_pb2.PositionRange(start=clause.predicate.start, end=clause.predicate.end)
        )
        message.range.SetInParent()
    return message
