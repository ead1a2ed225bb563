"""Admission of rules: strength, operation, blocks, vector."""

from __future__ import annotations

import math

import pytest

from steering_spec import Ablate, Add, Clamp, GenerationSpec, request_violations
from steering_spec import limits as api
from tests.support.admission import DIGEST, RULE, steered, told, with_facts

BIG = api.INT32_MAX + 1

ALONE: list[tuple[str, GenerationSpec, str]] = [
    ("a malformed vector name", steered("Not A Name"), "vector"),
    ("an infinite strength", steered(strength=math.inf), "strength"),
    ("a strength NaN", steered(strength=math.nan), "strength"),
    ("too much strength", steered(strength=-1001.0), "strength"),
    ("too much strength of an ablation", steered(operation=Ablate(), strength=1001.0), "strength"),
    ("a clamp without bounds", steered(operation=Clamp()), "operation.clamp"),
    ("an inverted clamp", steered(operation=Clamp(1.0, 0.5)), "operation.clamp"),
    ("an infinite bound below", steered(operation=Clamp(-math.inf, 0.5)), "operation.clamp.min"),
    ("a bound NaN", steered(operation=Clamp(0.5, math.nan)), "operation.clamp.max"),
    ("a bound that is infinite in 32 bits", steered(operation=Clamp(max=1e39)), "operation.clamp.max"),
    ("a negative block", steered(layers=(0, -1)), "layers[1]"),
    ("a block named twice", steered(layers=(0, 2, 0)), "layers[2]"),
    ("too many blocks", steered(layers=tuple(range(api.MAX_LAYERS + 1))), "layers"),
    ("a block beyond 32 bits", steered(layers=(BIG,)), "layers[0]"),
]

WITH_FACTS: list[tuple[str, GenerationSpec, str, str]] = [
    ("a block the model has not", steered(layers=(4,)), "layers[0]", "INVALID"),
    ("an unloaded vector", steered("absent"), "vector", "NOT_FOUND"),
    ("another digest", steered(f"sound@{'b' * 64}"), "vector", "NOT_FOUND"),
    ("a block the vector has not", steered(layers=(0, 1)), "layers[1]", "PRECONDITION"),
]


@pytest.mark.parametrize(("spec", "field"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_a_fault_of_a_rule_alone_is_found_without_any_facts(spec: GenerationSpec, field: str) -> None:
    assert told(request_violations(spec)) == [(f"{RULE}.{field}", "INVALID")]


@pytest.mark.parametrize(
    ("spec", "field", "kind"), [case[1:] for case in WITH_FACTS], ids=[case[0] for case in WITH_FACTS]
)
def test_a_fault_against_the_server_is_found_with_its_facts(
    spec: GenerationSpec, field: str, kind: str
) -> None:
    assert request_violations(spec) == []
    assert told(with_facts(spec)) == [(f"{RULE}.{field}", kind)]


@pytest.mark.parametrize(
    "spec",
    [
        steered(strength=-1000.0, layers=(2, 0)),
        steered(f"vectors/sound@{DIGEST}", strength=0.0),
        steered(operation=Add(norm_preserved=True)),
        steered(operation=Ablate(), strength=0.5),
        steered(operation=Clamp(min=-1.0)),
        steered(operation=Clamp(max=0.0)),
        steered(operation=Clamp(2.0, 2.0)),
    ],
)
def test_a_sound_rule_passes(spec: GenerationSpec) -> None:
    assert request_violations(spec) == []
    assert with_facts(spec) == []
