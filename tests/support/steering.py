"""Compiled rules and plans for tests, made by hand: no vector file and no registry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steering_engine.steering.contexts import ContextIndex
from steering_engine.steering.ops import Effect
from steering_engine.steering.plan import CompiledRule, SteeringPlan
from steering_engine.steering.selectors import resolve_selector
from steering_engine.steering.triggers import CompiledTrigger, ContextCondition, Reading
from steering_spec import Selector, SteeringSpec, TriggerKind


def rule(
    index: int,
    prompt: Sequence[int],
    *,
    layers: tuple[int, ...] = (1,),
    slots: tuple[int, ...] | None = None,
    effect: Effect | None = None,
    selector: Selector | None = None,
    trigger: CompiledTrigger | None = None,
) -> CompiledRule:
    """A rule that adds 1 along the direction in slot `index + 1`, at every step, unless told otherwise."""
    return CompiledRule(
        index,
        layers,
        slots or (index + 1,) * len(layers),
        (effect or Effect(1.0),) * len(layers),
        resolve_selector(selector or Selector.every_step(), prompt),
        trigger,
    )


def plan_of(prompt: Sequence[int], *rules: CompiledRule, exclusive: bool = False) -> SteeringPlan:
    """A plan of these rules, in this order."""
    return SteeringPlan(rules, exclusive, len(prompt), SteeringSpec(()), b"", first_row=0)


def probe(slot: int, *, block: int = 0, threshold: float = 0.0, **options: int) -> CompiledTrigger:
    """A trigger that fires where `h . row >= threshold`, `row` being the table's at `slot`."""
    return _trigger(Reading(TriggerKind.PROBE, block, (slot,), 0.0, threshold), **options)


def similarity(*slots: int, block: int = 0, min_cosine: float = 0.5, **options: int) -> CompiledTrigger:
    """A trigger that fires where the cosine to the nearest of the table's rows is at least `min_cosine`."""
    return _trigger(Reading(TriggerKind.SIMILARITY, block, slots, 0.0, min_cosine), **options)


def context(*contexts: Sequence[int], min_match: int = 1, **options: int) -> CompiledTrigger:
    """A trigger that fires after one of these contexts."""
    return _trigger(ContextCondition(ContextIndex(contexts), min_match), **options)


def _trigger(
    condition: ContextCondition | Reading, *, hold: int = 1, cooldown: int = 0, most: int = 0
) -> CompiledTrigger:
    return CompiledTrigger(condition, hold, cooldown, most or None)


def probability(value: float) -> float:
    """The logistic function, as it is written in books."""
    return 1 / (1 + math.exp(-value))
