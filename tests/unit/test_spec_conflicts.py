"""`ConflictPolicy.REJECT`: rules that could steer the same row of the same block are refused, and only those."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_spec import (
    ConflictPolicy,
    ContextTrigger,
    GenerationSpec,
    Selector,
    SteeringRule,
    SteeringSpec,
    Violation,
    request_violations,
)
from steering_spec.conflict_admission import conflict_violations
from tests.support.admission import (
    MODEL,
    PLAIN,
    find_vector,
    rule,
    with_facts,
)
from tests.support.clauses import chooses, is_sound, rows_and_tokens, selectors


def rejecting(*rules: SteeringRule) -> GenerationSpec:
    return replace(PLAIN, steering=SteeringSpec(rules, ConflictPolicy.REJECT))


def at(*selected: Selector) -> GenerationSpec:
    """A rule for each selector, all at block 0."""
    return rejecting(*(rule(selector=one, layers=(0,)) for one in selected))


def refused(spec: GenerationSpec) -> bool:
    found = with_facts(spec)
    assert all("CONFLICT_POLICY_REJECT" in one.description for one in found)
    return bool(found)


def test_both_rules_and_their_block_are_named() -> None:
    spec = rejecting(rule(layers=(0,)), rule(layers=(2,)), rule(layers=(3, 2)))
    assert request_violations(spec) == [
        Violation(
            "steering.rules[2]",
            "may steer the same rows of block 2 as rules[1], which CONFLICT_POLICY_REJECT forbids; "
            "make the selectors disjoint, or choose another policy",
        )
    ]


def test_every_pair_is_named() -> None:
    found = request_violations(rejecting(rule(), rule(), rule()))
    assert [(one.field, one.description.partition("as ")[2][:8]) for one in found] == [
        ("steering.rules[1]", "rules[0]"),
        ("steering.rules[2]", "rules[0]"),
        ("steering.rules[2]", "rules[1]"),
    ]


@pytest.mark.parametrize("policy", [ConflictPolicy.SEQUENTIAL, ConflictPolicy.FIRST])
def test_other_policies_let_rules_meet(policy: ConflictPolicy) -> None:
    assert with_facts(replace(PLAIN, steering=SteeringSpec((rule(), rule()), policy))) == []


def test_a_rule_that_is_off_meets_none() -> None:
    assert not refused(rejecting(rule(), rule(strength=0.0)))


def test_triggers_are_taken_to_fire_anywhere() -> None:
    assert refused(rejecting(rule(trigger=ContextTrigger()), rule(trigger=ContextTrigger(2))))


MEETING: list[tuple[str, Selector, Selector]] = [
    ("overlapping windows", Selector.step_window(0, 5), Selector.step_window(4)),
    ("a step of a window", Selector.step_window(3), Selector.steps(1, 7)),
    ("the last prompt row and step 0", Selector.prompt_positions(-1), Selector.steps(0)),
    ("a position under both its names", Selector.prompt_positions(1), Selector.prompt_positions(-4)),
    ("a token and every step", Selector.after_tokens(7), Selector()),
    ("a token in common", Selector.after_tokens(7, 8), Selector.after_tokens(8, 9)),
    ("a token of each phase, at step 0", Selector.after_tokens(7), Selector.prompt_tokens(7)),
    (
        "a token that is excluded in the prompt only",
        Selector.after_tokens(7),
        Selector().excluding(Selector.prompt_tokens(7)),
    ),
]

APART: list[tuple[str, Selector, Selector]] = [
    ("windows that touch", Selector.step_window(0, 5), Selector.step_window(5)),
    ("prompt and later steps", Selector.prompt_window(), Selector.step_window(1)),
    (
        "a window and what excludes it",
        Selector.step_window(3, 6),
        Selector().excluding(Selector.step_window(2, 6)),
    ),
    ("other tokens", Selector.after_tokens(7), Selector.after_tokens(8)),
    ("other tokens of the prompt and at step 0", Selector.prompt_tokens(7), Selector.after_tokens(8)),
    (
        "a token and all steps without it",
        Selector.after_tokens(7),
        Selector().excluding(Selector.after_tokens(7)),
    ),
]


@pytest.mark.parametrize(("one", "other"), [case[1:] for case in MEETING], ids=[case[0] for case in MEETING])
def test_rules_meet_at(one: Selector, other: Selector) -> None:
    assert refused(at(one, other))
    assert refused(at(other, one))


@pytest.mark.parametrize(("one", "other"), [case[1:] for case in APART], ids=[case[0] for case in APART])
def test_rules_are_kept_apart_by(one: Selector, other: Selector) -> None:
    assert not refused(at(one, other))
    assert not refused(at(other, one))


class TestWithoutFacts:
    """What is not known is left to the server, and nothing is refused that it might accept."""

    def test_blocks_of_a_rule_that_names_none_are_known_to_the_server_only(self) -> None:
        spec = rejecting(rule("sound"), rule("reading"))
        assert request_violations(spec) == []
        (found,) = with_facts(spec)
        assert "block 2 as rules[0]" in found.description

    def test_rules_of_one_vector_that_name_no_block_share_all_of_them(self) -> None:
        (found,) = request_violations(rejecting(rule("sound"), rule("vectors/sound")))
        assert "every block of vector 'sound'" in found.description

    def test_versions_of_a_vector_may_have_other_blocks(self) -> None:
        versions = [f"vectors/sound@{digit * 64}" for digit in "ab"]
        assert request_violations(rejecting(*map(rule, versions))) == []
        assert request_violations(rejecting(rule("sound"), rule(versions[0]))) == []

    def test_a_rule_that_names_no_block_shares_those_that_another_of_its_vector_names(self) -> None:
        (found,) = request_violations(rejecting(rule("sound"), rule("sound", layers=(2,))))
        assert "block 2 as rules[0]" in found.description

    def test_named_blocks_that_differ_are_apart_whatever_the_vector(self) -> None:
        assert not refused(rejecting(rule("sound", layers=(0,)), rule("sound", layers=(2,))))

    def test_steps_are_judged_and_prompt_rows_left_to_the_server(self) -> None:
        assert request_violations(at(Selector.steps(3), Selector.step_window(2, 4)))
        assert request_violations(at(Selector.steps(0), Selector.prompt_positions(-1)))
        prompt = at(Selector.prompt_positions(2), Selector.prompt_window(1, 3))
        assert request_violations(prompt) == []
        assert refused(prompt)


def meeting(one: Selector, other: Selector, prompt_length: int | None) -> bool:
    rules = {0: rule(selector=one), 1: rule(selector=other)}
    return bool(list(conflict_violations(rules, prompt_length)))


def all_sound(one: Selector, other: Selector, prompt_length: int | None) -> bool:
    clauses = (*one.include, *one.exclude, *other.include, *other.exclude)
    return all(is_sound(clause, prompt_length) for clause in clauses)


@given(selectors, selectors, st.integers(1, 9))
@settings(max_examples=1000)
def test_rules_meet_exactly_where_both_choose_a_row_with_the_same_token(
    one: Selector, other: Selector, prompt_length: int
) -> None:
    if all_sound(one, other, prompt_length):
        expected = any(
            chooses(one, row, token, prompt_length) and chooses(other, row, token, prompt_length)
            for row, token in rows_and_tokens(prompt_length)
        )
        assert meeting(one, other, prompt_length) == expected


@given(selectors, selectors)
@settings(max_examples=500)
def test_rules_that_meet_without_the_prompts_length_meet_with_every_length(
    one: Selector, other: Selector
) -> None:
    if all_sound(one, other, None) and meeting(one, other, None):
        for prompt_length in range(1, 20):
            if all_sound(one, other, prompt_length):
                assert meeting(one, other, prompt_length)


rules = st.builds(
    SteeringRule,
    st.sampled_from(["sound", "reading", "absent", "No Name"]),
    st.sampled_from([1.0, 0.0]),
    st.sampled_from([(), (0,), (2,), (2, 0), (3,), (9,)]),
    selector=selectors,
    trigger=st.none() | st.just(ContextTrigger()),
)


@given(st.lists(rules, min_size=1, max_size=3), st.sampled_from(ConflictPolicy), st.integers(1, 9))
@settings(max_examples=500)
def test_what_the_client_refuses_the_server_refuses_too(
    drawn: list[SteeringRule], policy: ConflictPolicy, prompt_length: int
) -> None:
    spec = replace(PLAIN, steering=SteeringSpec(tuple(drawn), policy))
    if request_violations(spec):
        assert request_violations(spec, MODEL, find_vector, (1,) * prompt_length)


def test_rules_that_meet_only_beyond_the_context_are_refused_by_client_and_server_alike() -> None:
    one, other = (
        Selector().excluding(Selector.step_window(0, 8)),
        Selector().excluding(Selector.step_window(8, 64)),
    )
    assert request_violations(at(one, other))
    assert refused(at(one, other))
