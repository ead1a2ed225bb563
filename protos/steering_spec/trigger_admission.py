"""The part of admission that judges triggers: when a rule acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from steering_spec import limits
from steering_spec.facts import ModelFacts, VectorFacts
from steering_spec.numbers import count_violations, range_violations
from steering_spec.steering import (
    ContextTrigger,
    Phase,
    ProbeTrigger,
    SimilarityTrigger,
    SteeringRule,
)
from steering_spec.violation import Violation, ViolationKind


def trigger_violations(
    path: str, rule: SteeringRule, model: ModelFacts | None = None, vector: VectorFacts | None = None
) -> Iterator[Violation]:
    """What is wrong with a rule's trigger.

    Args:
        path: Of the trigger, such as `steering.rules[0].trigger`.
        rule: The rule.
        model: Facts of the served model; None skips what depends on them.
        vector: Facts of the rule's vector; None skips what depends on them.
    """
    trigger = rule.trigger
    if trigger is None:
        return
    if rule.selector.include and all(one.phase is not Phase.GENERATION for one in rule.selector.include):
        yield Violation(path, "can never matter: triggers look at steps, and the selector includes none")
    if isinstance(trigger, ContextTrigger):
        named = f"{path}.context"
        yield from _match_violations(f"{named}.min_match_token_count", trigger.min_match_tokens)
        if vector is not None and vector.context_count == 0:
            text = f"vector {rule.vector!r} has no recorded pivot contexts"
            yield Violation(path, text, ViolationKind.PRECONDITION)
    else:
        reading = _reading(path, rule.vector, trigger, vector)
        named = reading.path
        yield from _threshold_violations(trigger, reading)
        yield from _reading_violations(reading, _first_steered_block(rule, vector), model)
    yield from count_violations(f"{named}.hold_step_count", trigger.hold_steps)
    yield from count_violations(f"{named}.cooldown_step_count", trigger.cooldown_steps, least=0)
    if trigger.max_firings is not None:
        yield from count_violations(f"{path}.max_firing_count", trigger.max_firings)


def readable_blocks(
    recorded: Mapping[int, float | None], first_steered: int, threshold: float | None
) -> tuple[int, ...]:
    """The blocks, ascending, that a probe or similarity trigger may read where its rule names none.

    Args:
        recorded: Blocks with a probe (or with centroids), each with the file's own threshold if there is one.
        first_steered: The first block that the rule steers.
        threshold: The rule's own threshold, if there is one.
    """
    return tuple(
        block
        for block, own in sorted(recorded.items())
        if block <= first_steered and (threshold is not None or own is not None)
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What probe and similarity triggers have in common: they read a block, and compare with a threshold.

    Attributes:
        path: Of the trigger, such as `steering.rules[0].trigger.probe`.
        vector: The rule's vector.
        layer: The block that the rule names.
        threshold: The threshold that the rule names.
        threshold_field: What that is called.
        what: What is recorded at a block.
        recorded: The vector's blocks with their thresholds; None when they aren't known.
    """

    path: str
    vector: str
    layer: int | None
    threshold: float | None
    threshold_field: str
    what: str
    recorded: Mapping[int, float | None] | None


def _reading(
    path: str, name: str, trigger: ProbeTrigger | SimilarityTrigger, vector: VectorFacts | None
) -> _Reading:
    if isinstance(trigger, ProbeTrigger):
        recorded = None if vector is None else vector.probes
        threshold = trigger.threshold
        return _Reading(f"{path}.probe", name, trigger.layer, threshold, "threshold", "probe", recorded)
    recorded = None if vector is None else vector.centroids
    cosine = trigger.min_cosine
    return _Reading(f"{path}.similarity", name, trigger.layer, cosine, "min_cosine", "centroids", recorded)


def _match_violations(field: str, tokens: int | None) -> Iterator[Violation]:
    if tokens is None:
        return
    yield from count_violations(field, tokens)
    most = limits.MAX_CONTEXT_MATCH
    if most < tokens <= limits.INT32_MAX:
        yield Violation(field, f"{tokens} can't be matched: a context has at most {most} tokens")


def _threshold_violations(
    trigger: ProbeTrigger | SimilarityTrigger, reading: _Reading
) -> Iterator[Violation]:
    field, threshold = f"{reading.path}.{reading.threshold_field}", reading.threshold
    if threshold is None:
        return
    if isinstance(trigger, SimilarityTrigger):
        yield from range_violations(field, threshold, -1, 1)
    elif not 0 < threshold < 1:
        yield Violation(field, f"{threshold} is outside (0, 1)")


def _reading_violations(
    reading: _Reading, first_steered: int | None, model: ModelFacts | None
) -> Iterator[Violation]:
    layer, recorded = reading.layer, reading.recorded
    layer_count = limits.INT32_MAX if model is None else model.layer_count
    if layer is not None and not 0 <= layer < layer_count:
        text = f"block {layer} does not exist; expected [0, {layer_count})"
        yield Violation(f"{reading.path}.layer", text)
    elif layer is not None and first_steered is not None and layer > first_steered:
        text = f"block {layer} is read after block {first_steered}, the first that the rule steers"
        yield Violation(f"{reading.path}.layer", text)
    elif recorded is not None and first_steered is not None:
        if (missing := _missing(reading, recorded, first_steered)) is not None:
            yield missing
        elif layer is not None:
            if reading.threshold is None and recorded[layer] is None:
                yield _no_threshold(reading, f"block {layer}")
        elif not readable_blocks(recorded, first_steered, reading.threshold):
            yield _no_threshold(reading, f"any block up to {first_steered}")


def _missing(reading: _Reading, recorded: Mapping[int, float | None], first_steered: int) -> Violation | None:
    """The violation of a trigger for which the vector has nothing recorded."""
    owner, blocks = f"vector {reading.vector!r}", sorted(recorded)
    field = reading.path
    if not blocks:
        text = f"{owner} has no {reading.what}"
    elif reading.layer is not None:
        if reading.layer in recorded:
            return None
        field = f"{field}.layer"
        text = f"{owner} has no {reading.what} at block {reading.layer}, only at {blocks}"
    elif blocks[0] > first_steered:
        text = (
            f"{owner} has {reading.what} only at {blocks}, "
            f"after block {first_steered}, the first that the rule steers"
        )
    else:
        return None
    return Violation(field, text, ViolationKind.PRECONDITION)


def _no_threshold(reading: _Reading, where: str) -> Violation:
    return Violation(
        f"{reading.path}.{reading.threshold_field}",
        f"vector {reading.vector!r} has none of its own for {where}; name one",
    )


def _first_steered_block(rule: SteeringRule, vector: VectorFacts | None) -> int | None:
    layers = rule.layers or (() if vector is None else vector.layers)
    return min((layer for layer in layers if layer >= 0), default=None)
