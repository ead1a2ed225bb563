"""A model, its vectors and a prompt as admission is told of them, and short ways to write requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steering_spec import (
    Clause,
    GenerationSpec,
    ModelFacts,
    Phase,
    Predicate,
    PromptText,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
    VectorFacts,
    VectorRef,
    Violation,
    request_violations,
)

DIGEST = "a" * 64
MODEL = ModelFacts(
    name="models/tiny",
    layer_count=4,
    vocab_size=100,
    max_context_tokens=64,
    default_max_tokens=16,
    chat_supported=True,
)
PLAIN = GenerationSpec(PromptText("hello"))
PROMPT = (1, 2, 3, 4, 5)
RULE = "steering.rules[0]"
INCLUDE = f"{RULE}.selector.include[0]"

VECTORS = {
    # Directions at blocks 0 and 2, and one context.
    "sound": VectorFacts(DIGEST, (0, 2), 1),
    "bare": VectorFacts(DIGEST, (0, 2), 0),
    # Steers from block 2 on; what blocks 0 and 1 have recorded can be read before that, what block 3 has can't.
    "reading": VectorFacts(DIGEST, (2, 3), 0, {0: 0.5, 1: None, 3: 0.5}, {0: 0.9, 1: None, 3: 0.9}),
    "undecided": VectorFacts(DIGEST, (2,), 0, {1: None}, {1: None}),
    "late": VectorFacts(DIGEST, (1,), 0, {2: 0.5, 3: 0.5}, {2: 0.5, 3: 0.5}),
}


def find_vector(ref: VectorRef) -> VectorFacts | None:
    found = VECTORS.get(ref.id)
    return found if found is not None and ref.sha256 in (None, found.sha256) else None


def with_facts(spec: GenerationSpec) -> list[Violation]:
    """What a server finds."""
    return request_violations(spec, MODEL, find_vector, PROMPT)


def rule(vector: str = "sound", **fields: Any) -> SteeringRule:
    return SteeringRule(vector, **fields)


def steered(vector: str = "sound", **fields: Any) -> GenerationSpec:
    return replace(PLAIN, steering=SteeringSpec((rule(vector, **fields),)))


def selecting(*include: Clause, exclude: tuple[Clause, ...] = ()) -> GenerationSpec:
    return steered(selector=Selector(include, exclude))


def prompt_rows(predicate: Predicate | None = None) -> Clause:
    return Clause(Phase.PROMPT, predicate)


def steps(predicate: Predicate | None = None) -> Clause:
    return Clause(Phase.GENERATION, predicate)


def sampled(**sampling: Any) -> GenerationSpec:
    return replace(PLAIN, sampling=SamplingParams(**sampling))


def told(violations: list[Violation]) -> list[tuple[str, str]]:
    """Fields and kinds."""
    return [(one.field, one.kind.name) for one in violations]
