"""From a steering spec to a plan: names become slots, operations numbers, selectors rows, defaults values."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from steering_engine.steering.ops import effect_of
from steering_engine.steering.plan import CompiledRule, SteeringPlan
from steering_engine.steering.selectors import resolve_selector
from steering_engine.steering.triggers import CompiledTrigger, ContextCondition, Reading
from steering_engine.vectors.registered import RegisteredVector
from steering_spec import (
    Clamp,
    ConflictPolicy,
    ContextTrigger,
    ProbeTrigger,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    Trigger,
    TriggerKind,
    VectorRef,
)
from steering_spec.trigger_admission import readable_blocks

_T = TypeVar("_T")


class Vectors(Protocol):
    """Where vectors are looked up: the registry, or a request's lease."""

    def find(self, ref: VectorRef) -> RegisteredVector | None:
        """The pinned version, or else the current one; None when it is not loaded."""
        ...


def compile_plan(spec: SteeringSpec, vectors: Vectors, prompt_ids: Sequence[int]) -> SteeringPlan:
    """Compiles a spec that admission found nothing wrong with.

    Rules with strength 0 do nothing at all: they are told in `applied`, and leave no trace in the computation.

    Args:
        spec: The steering.
        vectors: Where its vectors are found. Their rows are the plan's for as long as they are leased.
        prompt_ids: Token ids of the prompt.
    """
    compiled, applied = [], []
    for index, rule in enumerate(spec.rules):
        registered = vectors.find(VectorRef.parse(rule.vector))
        if registered is None:
            raise KeyError(f"{rule.vector} is not loaded")  # admission has looked it up just before
        full = _canonical(rule, registered)
        applied.append(full)
        if rule.strength != 0:
            compiled.append(_compile_rule(index, full, registered, prompt_ids))
    canonical = dataclasses.replace(spec, rules=tuple(applied))
    exclusive = spec.conflict_policy is ConflictPolicy.FIRST
    if not exclusive:  # a bound that is set after everything else is a bound that holds
        compiled.sort(key=lambda rule: isinstance(applied[rule.index].operation, Clamp))
    first_rows = [first for rule in compiled if (first := rule.selector.first_row()) is not None]
    return SteeringPlan(
        rules=tuple(compiled),
        exclusive=exclusive,
        prompt_length=len(prompt_ids),
        applied=canonical,
        # The prompt's length is part of the salt: it decides which rows are steps.
        cache_salt=hashlib.sha256(f"{len(prompt_ids)} {canonical!r}".encode()).digest(),
        first_row=min(first_rows, default=None),
    )


def _canonical(rule: SteeringRule, registered: RegisteredVector) -> SteeringRule:
    layers = tuple(sorted(rule.layers or registered.vector.directions))
    name = VectorRef(registered.id, registered.vector.sha256).name
    trigger = None if rule.trigger is None else _canonical_trigger(rule.trigger, registered, layers[0])
    return dataclasses.replace(rule, vector=name, layers=layers, trigger=trigger)


def _canonical_trigger(trigger: Trigger, registered: RegisteredVector, first_layer: int) -> Trigger:
    if isinstance(trigger, ContextTrigger):
        minimum = trigger.min_match_tokens or registered.vector.metadata.context_min_match
        return dataclasses.replace(trigger, min_match_tokens=minimum)
    if isinstance(trigger, ProbeTrigger):
        layer = trigger.layer
        if layer is None:
            readable = readable_blocks(registered.facts.probes, first_layer, trigger.threshold)
            layer = max(readable, key=lambda block: (registered.probes[block].auc or 0.0, block))
        threshold = registered.probes[layer].threshold if trigger.threshold is None else trigger.threshold
        return dataclasses.replace(trigger, layer=layer, threshold=threshold)
    layer = trigger.layer
    if layer is None:
        layer = max(readable_blocks(registered.facts.centroids, first_layer, trigger.min_cosine))
    least = registered.centroids[layer].min_cosine if trigger.min_cosine is None else trigger.min_cosine
    return dataclasses.replace(trigger, layer=layer, min_cosine=least)


def _compile_rule(
    index: int, rule: SteeringRule, registered: RegisteredVector, prompt_ids: Sequence[int]
) -> CompiledRule:
    """Compiles a canonical rule."""
    calibrated = registered.vector.metadata.calibrated_strength
    return CompiledRule(
        index=index,
        layers=rule.layers,
        slots=tuple(registered.slots[layer] for layer in rule.layers),
        effects=tuple(effect_of(rule.operation, rule.strength, calibrated[layer]) for layer in rule.layers),
        selector=resolve_selector(rule.selector, prompt_ids),
        trigger=None if rule.trigger is None else _compile_trigger(rule.trigger, registered),
    )


def _compile_trigger(trigger: Trigger, registered: RegisteredVector) -> CompiledTrigger:
    return CompiledTrigger(
        condition=_condition(trigger, registered),
        hold_steps=trigger.hold_steps,
        cooldown_steps=trigger.cooldown_steps,
        max_firings=trigger.max_firings,
    )


def _condition(trigger: Trigger, registered: RegisteredVector) -> ContextCondition | Reading:
    if isinstance(trigger, ContextTrigger):
        return ContextCondition(registered.contexts, _filled(trigger.min_match_tokens))
    layer = _filled(trigger.layer)
    if isinstance(trigger, SimilarityTrigger):
        slots = registered.centroids[layer].slots
        return Reading(TriggerKind.SIMILARITY, layer, slots, 0.0, _filled(trigger.min_cosine))
    probe = registered.probes[layer]
    return Reading(TriggerKind.PROBE, layer, (probe.slot,), probe.bias, _logit(_filled(trigger.threshold)))


def _filled(value: _T | None) -> _T:
    if value is None:
        raise ValueError("a default is missing that admission has seen")
    return value


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)
