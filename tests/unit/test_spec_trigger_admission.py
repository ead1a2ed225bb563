"""Admission of triggers: their numbers, the order of what is read and steered, and what the vector must hold."""

from __future__ import annotations

import math
from typing import Any

import pytest

from steering_spec import (
    Clause,
    ContextTrigger,
    GenerationSpec,
    Phase,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    Trigger,
    request_violations,
)
from steering_spec import limits as api
from steering_spec.trigger_admission import readable_blocks
from tests.support.admission import MODEL, RULE, find_vector, steered, told, with_facts

TRIGGER = f"{RULE}.trigger"
KINDS: dict[str, type[ContextTrigger | ProbeTrigger | SimilarityTrigger]] = {
    "context": ContextTrigger,
    "probe": ProbeTrigger,
    "similarity": SimilarityTrigger,
}
READING = {"probe": ProbeTrigger, "similarity": SimilarityTrigger}
THRESHOLD = {"probe": "threshold", "similarity": "min_cosine"}


def reading(kind: str, layer: int | None = None, threshold: float | None = None) -> Trigger:
    return READING[kind](layer, threshold)


def triggered(trigger: Trigger, vector: str = "reading", **fields: Any) -> GenerationSpec:
    return steered(vector, trigger=trigger, **fields)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"hold_steps": 0}, "{name}.hold_step_count"),
        ({"hold_steps": api.INT32_MAX + 1}, "{name}.hold_step_count"),
        ({"cooldown_steps": -1}, "{name}.cooldown_step_count"),
        ({"max_firings": 0}, "max_firing_count"),
    ],
)
def test_every_trigger_holds_and_fires_at_least_once(name: str, fields: dict[str, int], path: str) -> None:
    found = request_violations(triggered(KINDS[name](**fields)))
    assert told(found) == [(f"{TRIGGER}.{path.format(name=name)}", "INVALID")]


@pytest.mark.parametrize("name", KINDS)
def test_a_trigger_at_its_limits_passes(name: str) -> None:
    trigger = KINDS[name](hold_steps=1, cooldown_steps=0, max_firings=1)
    assert with_facts(triggered(trigger, "sound" if name == "context" else "reading")) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_trigger_is_refused_where_no_step_is_selected(name: str) -> None:
    trigger = KINDS[name]()
    found = request_violations(triggered(trigger, selector=Selector.prompt_positions(-1)))
    assert told(found) == [(TRIGGER, "INVALID")]
    both = Selector((Clause(Phase.PROMPT), Clause(Phase.GENERATION)))
    assert request_violations(triggered(trigger, selector=both)) == []


@pytest.mark.parametrize("tokens", [0, 65, api.INT32_MAX + 1])
def test_a_match_has_at_least_one_token_and_no_more_than_a_context(tokens: int) -> None:
    found = request_violations(triggered(ContextTrigger(tokens)))
    assert told(found) == [(f"{TRIGGER}.context.min_match_token_count", "INVALID")]
    assert request_violations(triggered(ContextTrigger(1))) == []
    assert request_violations(triggered(ContextTrigger(64))) == []


def test_a_context_trigger_needs_contexts() -> None:
    assert told(with_facts(triggered(ContextTrigger(), "bare"))) == [(TRIGGER, "PRECONDITION")]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, math.nan, math.inf])
def test_the_threshold_of_a_probe_lies_between_0_and_1(threshold: float) -> None:
    found = request_violations(triggered(ProbeTrigger(threshold=threshold)))
    assert told(found) == [(f"{TRIGGER}.probe.threshold", "INVALID")]


@pytest.mark.parametrize("cosine", [-1.01, 1.01, math.nan])
def test_a_cosine_lies_between_minus_1_and_1(cosine: float) -> None:
    found = request_violations(triggered(SimilarityTrigger(min_cosine=cosine)))
    assert told(found) == [(f"{TRIGGER}.similarity.min_cosine", "INVALID")]
    for limit in (-1.0, 1.0):
        assert request_violations(triggered(SimilarityTrigger(min_cosine=limit))) == []


@pytest.mark.parametrize("kind", READING)
class TestTheBlockThatIsRead:
    def test_exists(self, kind: str) -> None:
        for layer in (-1, api.INT32_MAX):
            found = request_violations(triggered(reading(kind, layer)))
            assert told(found) == [(f"{TRIGGER}.{kind}.layer", "INVALID")]
        assert told(request_violations(triggered(reading(kind, 4)), MODEL)) == [
            (f"{TRIGGER}.{kind}.layer", "INVALID")
        ]

    def test_may_be_the_first_that_the_rule_steers_and_none_after_it(self, kind: str) -> None:
        assert request_violations(triggered(reading(kind, 3), layers=(5, 3))) == []
        (found,) = request_violations(triggered(reading(kind, 5), layers=(7, 3)))
        assert found.field == f"{TRIGGER}.{kind}.layer"
        assert found.description == "block 5 is read after block 3, the first that the rule steers"

    def test_comes_before_the_vectors_blocks_where_the_rule_names_none(self, kind: str) -> None:
        spec = triggered(reading(kind, 3))
        assert request_violations(spec) == []
        (found,) = with_facts(spec)
        assert found.description == "block 3 is read after block 2, the first that the rule steers"

    def test_has_something_recorded(self, kind: str) -> None:
        spec = triggered(reading(kind, 2, 0.5))
        (found,) = with_facts(spec)
        assert told([found]) == [(f"{TRIGGER}.{kind}.layer", "PRECONDITION")]
        what = {"probe": "probe", "similarity": "centroids"}[kind]
        assert found.description == f"vector 'reading' has no {what} at block 2, only at [0, 1, 3]"

    def test_has_a_threshold_in_the_rule_or_in_the_file(self, kind: str) -> None:
        assert with_facts(triggered(reading(kind, 0))) == []
        assert with_facts(triggered(reading(kind, 1, 0.25))) == []
        assert told(with_facts(triggered(reading(kind, 1)))) == [
            (f"{TRIGGER}.{kind}.{THRESHOLD[kind]}", "INVALID")
        ]

    def test_is_found_in_the_file_where_the_rule_names_none(self, kind: str) -> None:
        assert with_facts(triggered(reading(kind))) == []
        assert with_facts(triggered(reading(kind, None, 0.25), "undecided")) == []

    def test_must_be_found_in_the_file_where_the_rule_names_none(self, kind: str) -> None:
        at = f"{TRIGGER}.{kind}"
        assert told(with_facts(triggered(reading(kind), "sound"))) == [(at, "PRECONDITION")]
        assert told(with_facts(triggered(reading(kind), "late"))) == [(at, "PRECONDITION")]
        assert told(with_facts(triggered(reading(kind), "undecided"))) == [
            (f"{at}.{THRESHOLD[kind]}", "INVALID")
        ]

    def test_is_judged_by_the_blocks_that_the_rule_names(self, kind: str) -> None:
        facts = find_vector
        assert request_violations(triggered(reading(kind), layers=(3,)), MODEL, facts) == []
        late = triggered(reading(kind), "late", layers=(1,))
        assert told(request_violations(late, MODEL, facts)) == [(f"{TRIGGER}.{kind}", "PRECONDITION")]


def test_every_fault_of_a_trigger_is_told_at_once() -> None:
    trigger = ProbeTrigger(layer=9, threshold=2.0, hold_steps=0, cooldown_steps=-1, max_firings=0)
    found = with_facts(triggered(trigger, selector=Selector.prompt_positions(0)))
    assert [one.field.removeprefix(TRIGGER) for one in found] == [
        "",
        ".probe.threshold",
        ".probe.layer",
        ".probe.hold_step_count",
        ".probe.cooldown_step_count",
        ".max_firing_count",
    ]


def test_a_block_can_be_read_up_to_the_first_steered_one_if_it_has_a_threshold() -> None:
    recorded = {5: 0.5, 0: None, 2: 0.1, 3: None}
    assert readable_blocks(recorded, 3, None) == (2,)
    assert readable_blocks(recorded, 3, 0.7) == (0, 2, 3)
    assert readable_blocks(recorded, 1, None) == ()
