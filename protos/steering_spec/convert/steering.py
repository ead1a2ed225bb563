"""Steering: `SteeringSpec` and its rules, from and to protobuf."""

from __future__ import annotations

from itertools import islice

from steering.v1 import steering_pb2
from steering_spec import limits
from steering_spec.convert.trigger import trigger_from_proto, trigger_to_proto
from steering_spec.steering import (
    Ablate,
    Add,
    Clamp,
    Clause,
    ConflictPolicy,
    Operation,
    Phase,
    Positions,
    Selector,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Window,
)
from steering_spec.violation import InvalidRequestError, Violation

_PHASES = {Phase.PROMPT: steering_pb2.PHASE_PROMPT, Phase.GENERATION: steering_pb2.PHASE_GENERATION}
_PHASES_BACK = {number: phase for phase, number in _PHASES.items()}
_POLICIES = {
    ConflictPolicy.SEQUENTIAL: steering_pb2.CONFLICT_POLICY_SEQUENTIAL,
    ConflictPolicy.FIRST: steering_pb2.CONFLICT_POLICY_FIRST,
    ConflictPolicy.REJECT: steering_pb2.CONFLICT_POLICY_REJECT,
}
_POLICIES_BACK = {
    steering_pb2.CONFLICT_POLICY_UNSPECIFIED: ConflictPolicy.SEQUENTIAL,
    **{number: policy for policy, number in _POLICIES.items()},
}
# Admission finds nothing wrong with these, and of the clauses beside them hardly any excludes or is excluded by them.
_UNREADABLE = {
    "include": Clause(Phase.GENERATION),
    "exclude": Clause(Phase.GENERATION, TokenSet((0,))),
}


def steering_from_proto(message: steering_pb2.SteeringSpec) -> SteeringSpec:
    """Reads a steering spec.

    Raises:
        InvalidRequestError: Something can't be expressed in the types; all such faults at once.
    """
    faults: list[Violation] = []
    spec = read_steering(message, faults)
    if faults:
        raise InvalidRequestError(faults)
    return spec


def read_steering(message: steering_pb2.SteeringSpec, faults: list[Violation]) -> SteeringSpec:
    """Reads a steering spec, and adds what of it can't be expressed in the types to `faults`."""
    before = len(faults)
    rules = tuple(
        _rule_from_proto(rule, f"steering.rules[{index}]", faults)
        for index, rule in enumerate(islice(message.rules, limits.MAX_RULES + 1))
    )
    policy = _POLICIES_BACK.get(message.conflict_policy)
    if policy is None:
        text = f"{message.conflict_policy} is no policy; expected one of ConflictPolicy or nothing"
        faults.append(Violation("steering.conflict_policy", text))
    if policy is None or len(faults) > before:  # whether rules meet that can't be read is not to be judged
        policy = ConflictPolicy.SEQUENTIAL
    return SteeringSpec(rules, policy)


def _rule_from_proto(message: steering_pb2.SteeringRule, path: str, faults: list[Violation]) -> SteeringRule:
    selector = Selector.every_step()
    if message.HasField("selector"):
        clauses = {
            name: tuple(
                _clause_from_proto(clause, f"{path}.selector.{name}[{index}]", faults) or _UNREADABLE[name]
                for index, clause in enumerate(
                    islice(getattr(message.selector, name), limits.MAX_CLAUSES + 1)
                )
            )
            for name in ("include", "exclude")
        }
        selector = Selector(**clauses)
    return SteeringRule(
        vector=message.vector,
        strength=message.strength if message.HasField("strength") else 1.0,
        layers=tuple(message.layers[: limits.MAX_LAYERS + 1]),
        operation=_operation_from_proto(message, f"{path}.operation", faults),
        selector=selector,
        trigger=(
            trigger_from_proto(message.trigger, f"{path}.trigger", faults)
            if message.HasField("trigger")
            else None
        ),
    )


def _operation_from_proto(
    message: steering_pb2.SteeringRule, path: str, faults: list[Violation]
) -> Operation:
    operation = message.operation
    kind = operation.WhichOneof("kind")
    if kind == "ablate":
        return Ablate()
    if kind == "clamp":
        clamp = operation.clamp
        return Clamp(
            min=clamp.min if clamp.HasField("min") else None,
            max=clamp.max if clamp.HasField("max") else None,
        )
    if kind is None and message.HasField("operation"):
        faults.append(Violation(path, "no operation; set one or leave the field unset"))
    return Add(norm_preserved=operation.add.norm_preserved)


def _clause_from_proto(message: steering_pb2.Clause, path: str, faults: list[Violation]) -> Clause | None:
    phase = _PHASES_BACK.get(message.phase)
    if phase is None:
        faults.append(Violation(f"{path}.phase", "no phase; expected PHASE_PROMPT or PHASE_GENERATION"))
        return None
    kind = message.WhichOneof("predicate")
    if kind == "positions":
        return Clause(phase, Positions(tuple(message.positions.positions[: limits.MAX_POSITIONS + 1])))
    if kind == "range":
        end = message.range.end if message.range.HasField("end") else None
        return Clause(phase, Window(message.range.start, end))
    if kind == "tokens":
        return Clause(phase, TokenSet(tuple(message.tokens.ids[: limits.MAX_TOKEN_SET_IDS + 1])))
    return Clause(phase)


def steering_to_proto(spec: SteeringSpec) -> steering_pb2.SteeringSpec:
    """Writes a steering spec."""
    return steering_pb2.SteeringSpec(
        rules=[_rule_to_proto(rule) for rule in spec.rules], conflict_policy=_POLICIES[spec.conflict_policy]
    )


def _rule_to_proto(rule: SteeringRule) -> steering_pb2.SteeringRule:
    return steering_pb2.SteeringRule(
        vector=rule.vector if rule.vector.startswith("vectors/") else f"vectors/{rule.vector}",
        strength=rule.strength,
        layers=rule.layers,
        operation=_operation_to_proto(rule.operation),
        selector=steering_pb2.Selector(
            include=[_clause_to_proto(clause) for clause in rule.selector.include],
            exclude=[_clause_to_proto(clause) for clause in rule.selector.exclude],
        ),
        trigger=None if rule.trigger is None else trigger_to_proto(rule.trigger),
    )


def _operation_to_proto(operation: Operation) -> steering_pb2.Operation:
    match operation:
        case Add(norm_preserved):
            return steering_pb2.Operation(add=steering_pb2.Add(norm_preserved=norm_preserved))
        case Ablate():
            return steering_pb2.Operation(ablate=steering_pb2.Ablate())
        case Clamp(least, most):
            return steering_pb2.Operation(clamp=steering_pb2.Clamp(min=least, max=most))
        case _:
            raise TypeError(f"an operation is an Add, Ablate or Clamp; got {operation!r:.80}")


def _clause_to_proto(clause: Clause) -> steering_pb2.Clause:
    message = steering_pb2.Clause(phase=_PHASES[clause.phase])
    match clause.predicate:
        case Positions(positions):
            message.positions.CopyFrom(steering_pb2.PositionSet(positions=positions))
        case Window(start, end):
            message.range.CopyFrom(steering_pb2.PositionRange(start=start, end=end))
        case TokenSet(ids):
            message.tokens.CopyFrom(steering_pb2.TokenSet(ids=ids))
        case None:
            pass
        case _:
            raise TypeError(
                f"a predicate is a Positions, Window, TokenSet or None; got {clause.predicate!r:.80}"
            )
    return message
