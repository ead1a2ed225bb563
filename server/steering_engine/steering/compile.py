"""From a steering spec to a plan: names become slots, strengths residual units, selectors rows, defaults values."""

from __future__ import annotations

import dataclasses
import hashlib

from steering_engine.steering.contexts import CompiledTrigger
from steering_engine.steering.plan import CompiledRule, SteeringPlan
from steering_engine.steering.selectors import resolve_selector
from steering_engine.vectors.registry import RegisteredVector, VectorRegistry
from steering_spec import SteeringRule, SteeringSpec, VectorRef


def compile_plan(spec: SteeringSpec, registry: VectorRegistry, prompt_length: int) -> SteeringPlan:
    """Compiles a spec that admission found nothing wrong with.

    Rules with strength 0 do nothing at all: they are told in `applied`, and leave no trace in the computation.
    """
    compiled, applied = [], []
    for index, rule in enumerate(spec.rules):
        registered = registry.find(VectorRef.parse(rule.vector))
        if registered is None:
            raise KeyError(f"{rule.vector} is not loaded")  # admission has looked it up just before
        layers = tuple(sorted(rule.layers or registered.vector.directions))
        applied.append(_canonical(rule, registered, layers))
        if rule.strength != 0:
            compiled.append(_compile_rule(index, rule, registered, layers, prompt_length))
    canonical = SteeringSpec(tuple(applied))
    first_rows = [first for rule in compiled if (first := rule.selector.first_row()) is not None]
    return SteeringPlan(
        rules=tuple(compiled),
        prompt_length=prompt_length,
        applied=canonical,
        # The prompt's length is part of the salt: it decides which rows are steps.
        cache_salt=hashlib.sha256(f"{prompt_length} {canonical!r}".encode()).digest(),
        first_row=min(first_rows, default=None),
    )


def _canonical(rule: SteeringRule, registered: RegisteredVector, layers: tuple[int, ...]) -> SteeringRule:
    trigger = rule.trigger
    if trigger is not None:
        minimum = trigger.min_match_tokens or registered.vector.metadata.context_min_match
        trigger = dataclasses.replace(trigger, min_match_tokens=minimum)
    name = VectorRef(registered.id, registered.vector.sha256).name
    return dataclasses.replace(rule, vector=name, layers=layers, trigger=trigger)


def _compile_rule(
    index: int, rule: SteeringRule, registered: RegisteredVector, layers: tuple[int, ...], prompt_length: int
) -> CompiledRule:
    metadata = registered.vector.metadata
    return CompiledRule(
        index=index,
        layers=layers,
        slots=tuple(registered.slots[layer] for layer in layers),
        scales=tuple(rule.strength * metadata.calibrated_strength[layer] for layer in layers),
        selector=resolve_selector(rule.selector, prompt_length),
        trigger=(
            None
            if rule.trigger is None
            else CompiledTrigger.compile(rule.trigger, registered.contexts, metadata.context_min_match)
        ),
    )
