"""The part of admission that judges rules: what is done at a row, and with which vector."""

from __future__ import annotations

from collections.abc import Iterator

from steering_spec import limits
from steering_spec.facts import FindVector, ModelFacts, VectorFacts
from steering_spec.naming import VectorRef
from steering_spec.numbers import range_violations
from steering_spec.steering import Clamp, Operation, SteeringRule
from steering_spec.trigger_admission import trigger_violations
from steering_spec.violation import Violation, ViolationKind


def rule_violations(
    path: str, rule: SteeringRule, model: ModelFacts | None = None, find_vector: FindVector | None = None
) -> Iterator[Violation]:
    """What is wrong with a rule, apart from its selector.

    Args:
        path: Of the rule, such as `steering.rules[0]`.
        rule: The rule.
        model: Facts of the served model; None skips what depends on them.
        find_vector: Looks its vector up; None skips what depends on it.
    """
    most = limits.MAX_STRENGTH
    yield from range_violations(f"{path}.strength", rule.strength, -most, most)
    yield from _operation_violations(f"{path}.operation", rule.operation)
    yield from _layer_violations(f"{path}.layers", rule.layers, model)
    vector: VectorFacts | None = None
    try:
        ref = VectorRef.parse(rule.vector)
    except ValueError as error:
        yield Violation(f"{path}.vector", str(error))
    else:
        if find_vector is not None:
            vector = find_vector(ref)
            if vector is None:
                yield _not_loaded(f"{path}.vector", ref, find_vector)
            else:
                yield from _vector_violations(path, rule, ref, vector, model)
    yield from trigger_violations(f"{path}.trigger", rule, model, vector)


def _operation_violations(path: str, operation: Operation) -> Iterator[Violation]:
    if not isinstance(operation, Clamp):
        return
    path = f"{path}.clamp"
    if operation.min is None and operation.max is None:
        yield Violation(path, "bounds nothing; set min, max or both")
    bounds = {"min": operation.min, "max": operation.max}
    for name, bound in bounds.items():
        if bound is not None and not abs(bound) <= limits.MAX_CLAMP_BOUND:
            yield Violation(f"{path}.{name}", f"{bound} is no finite number of 32 bits")
    if operation.min is not None and operation.max is not None and operation.min > operation.max:
        yield Violation(path, f"min {operation.min} is above max {operation.max}")


def _layer_violations(path: str, layers: tuple[int, ...], model: ModelFacts | None) -> Iterator[Violation]:
    if len(layers) > limits.MAX_LAYERS:
        yield Violation(path, f"more than {limits.MAX_LAYERS} blocks")
        return
    seen: set[int] = set()
    layer_count = limits.INT32_MAX if model is None else model.layer_count
    for index, layer in enumerate(layers):
        if not 0 <= layer < layer_count:
            yield Violation(f"{path}[{index}]", f"block {layer} does not exist; expected [0, {layer_count})")
        elif layer in seen:
            yield Violation(f"{path}[{index}]", f"block {layer} is named twice")
        seen.add(layer)


def _not_loaded(path: str, ref: VectorRef, find_vector: FindVector) -> Violation:
    current = None if ref.sha256 is None else find_vector(VectorRef(ref.id))
    description = f"no vector {ref.id!r} is loaded"
    if current is not None:
        description = (
            f"no version of {ref.id!r} with the digest {ref.sha256} is loaded; it has {current.sha256}"
        )
    return Violation(path, description, ViolationKind.NOT_FOUND)


def _vector_violations(
    path: str, rule: SteeringRule, ref: VectorRef, facts: VectorFacts, model: ModelFacts | None
) -> Iterator[Violation]:
    layer_count = limits.INT32_MAX if model is None else model.layer_count
    for index, layer in enumerate(rule.layers):
        if 0 <= layer < layer_count and layer not in facts.layers:
            yield Violation(
                f"{path}.layers[{index}]",
                f"vector {ref.id!r} has no direction at block {layer}; it has {list(facts.layers)}",
                ViolationKind.PRECONDITION,
            )
