"""Admission: every fault of a request is found, named by its field, and told together with the others.

Here: prompts, names, and what holds for all. Sampling, rules, triggers, selectors and conflicts have their own files.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from steering_spec import (
    Chat,
    ChatMessage,
    Clamp,
    ConflictPolicy,
    GenerationSpec,
    InvalidRequestError,
    Positions,
    ProbeTrigger,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Violation,
    ViolationKind,
    request_violations,
)
from steering_spec import limits as api
from tests.support.admission import (
    MODEL,
    PLAIN,
    PROMPT,
    find_vector,
    prompt_rows,
    rule,
    selecting,
    steered,
    steps,
    told,
    with_facts,
)

BIG = api.INT32_MAX + 1

ALONE: list[tuple[str, GenerationSpec, str]] = [
    ("empty text", GenerationSpec(PromptText("")), "text"),
    ("no ids", GenerationSpec(PromptIds(())), "tokens.ids"),
    ("a negative id", GenerationSpec(PromptIds((3, -1))), "tokens.ids[1]"),
    ("an id beyond 32 bits", GenerationSpec(PromptIds((BIG,))), "tokens.ids[0]"),
    ("no messages", GenerationSpec(Chat(())), "chat.messages"),
    ("an unknown role", GenerationSpec(Chat((ChatMessage("robot", "x"),))), "chat.messages[0].role"),
    (
        "a user message left open",
        GenerationSpec(Chat((ChatMessage("user", "x"),), final_message_open=True)),
        "chat.final_message_open",
    ),
    ("a long id", replace(PLAIN, request_id="x" * 129), "request_id"),
    (
        "too many rules",
        replace(PLAIN, steering=SteeringSpec((rule(),) * (api.MAX_RULES + 1))),
        "steering.rules",
    ),
]


@pytest.mark.parametrize(("spec", "field"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_a_fault_of_the_request_alone_is_found_without_any_facts(spec: GenerationSpec, field: str) -> None:
    assert told(request_violations(spec)) == [(field, "INVALID")]


@pytest.mark.parametrize(
    ("spec", "field", "kind"),
    [
        (replace(PLAIN, model="models/other"), "model", "NOT_FOUND"),
        (GenerationSpec(PromptIds((1, 100))), "tokens.ids[1]", "INVALID"),
    ],
    ids=["another model", "an id outside the vocabulary"],
)
def test_a_fault_against_the_server_is_found_with_its_facts(
    spec: GenerationSpec, field: str, kind: str
) -> None:
    assert request_violations(spec) == []
    assert told(with_facts(spec)) == [(field, kind)]


@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        GenerationSpec(Chat((ChatMessage("system", ""), ChatMessage("assistant", "so")), True)),
        replace(PLAIN, model="models/tiny", request_id="x" * 128),
        replace(PLAIN, steering=SteeringSpec(())),
        replace(PLAIN, steering=SteeringSpec((), ConflictPolicy.REJECT)),
        replace(PLAIN, steering=SteeringSpec((rule(), rule()))),
        replace(PLAIN, steering=SteeringSpec((rule(), rule()), ConflictPolicy.FIRST)),
    ],
)
def test_a_sound_request_passes(spec: GenerationSpec) -> None:
    assert request_violations(spec) == []
    assert with_facts(spec) == []


def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    found = request_violations(PLAIN, MODEL, find_vector, (1,) * 64)
    assert [one.field for one in found] == ["prompt"]


def test_a_text_whose_tokens_the_model_does_not_know_is_refused() -> None:
    found = request_violations(PLAIN, MODEL, find_vector, (1, 100))
    assert [one.field for one in found] == ["prompt"]


def test_a_model_without_a_template_takes_no_chat() -> None:
    spec = GenerationSpec(Chat((ChatMessage("user", "x"),)))
    assert told(request_violations(spec, replace(MODEL, chat_supported=False))) == [("chat", "PRECONDITION")]


def test_a_chat_has_a_limited_number_of_messages() -> None:
    messages = (ChatMessage("user", "x"),) * (api.MAX_MESSAGES + 1)
    assert told(request_violations(GenerationSpec(Chat(messages)))) == [("chat.messages", "INVALID")]
    assert request_violations(GenerationSpec(Chat(messages[1:]))) == []


def test_all_faults_come_back_at_once() -> None:
    spec = GenerationSpec(
        PromptText(""),
        SamplingParams(temperature=-1, top_p=2, n=0, repetition_penalty=0, logit_bias=((7, math.nan),)),
        SteeringSpec(
            (
                SteeringRule("absent"),
                SteeringRule("sound", math.nan, selector=Selector.steps(3, -2)),
                SteeringRule("reading", operation=Clamp(), trigger=ProbeTrigger(layer=3, hold_steps=0)),
                SteeringRule("sound", selector=Selector.after_tokens(99, 100)),
                SteeringRule("sound", layers=(2,)),
            ),
            ConflictPolicy.REJECT,
        ),
    )
    assert [one.field for one in with_facts(spec)] == [
        "text",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.completion_count",
        "sampling.repetition_penalty",
        "sampling.logit_bias[7]",
        "steering.rules[0].vector",
        "steering.rules[1].strength",
        "steering.rules[1].selector.include[0].positions.positions[1]",
        "steering.rules[2].operation.clamp",
        "steering.rules[2].trigger.probe.layer",
        "steering.rules[2].trigger.probe.hold_step_count",
        "steering.rules[3].selector.include[0].tokens.ids[1]",
        "steering.rules[4]",
    ]


def test_the_context_ends_at_a_step_that_depends_on_the_prompt() -> None:
    def beyond(step: int, selector: Selector) -> bool:
        found = request_violations(steered(selector=selector), MODEL, find_vector, (1,) * 60)
        assert all(
            f"step {step} can't be reached: the context has room for 4 steps" in str(one) for one in found
        )
        return bool(found)

    assert [beyond(step, Selector.steps(step)) for step in (3, 4)] == [False, True]
    assert [beyond(step, Selector.step_window(step)) for step in (3, 4)] == [False, True]


def test_ids_are_as_long_as_they_are_for_a_client_too() -> None:
    spec = replace(steered(selector=Selector.prompt_positions(5)), prompt=PromptIds((1, 2, 3)))
    assert [one.field for one in request_violations(spec)] == [
        "steering.rules[0].selector.include[0].positions.positions[0]"
    ]


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("text", GenerationSpec(PromptText("a\ud800"))),
        ("chat.messages[0].content", GenerationSpec(Chat((ChatMessage("user", "\udfff"),)))),
        ("sampling.stop_sequences[1]", GenerationSpec(PromptText("a"), SamplingParams(stop=("b", "\ud801")))),
        ("request_id", GenerationSpec(PromptText("a"), request_id="\ud800")),
    ],
)
def test_half_of_a_surrogate_pair_is_no_text(field: str, spec: GenerationSpec) -> None:
    assert told(request_violations(spec)) == [(field, "INVALID")]


def test_the_number_of_faults_told_is_bounded() -> None:
    spec = selecting(steps(Positions((-1,) * 60_000)))
    assert len(request_violations(spec)) == api.MAX_VIOLATIONS


@pytest.mark.parametrize(
    ("kinds", "decides"),
    [
        ([ViolationKind.PRECONDITION, ViolationKind.NOT_FOUND], ViolationKind.NOT_FOUND),
        ([ViolationKind.NOT_FOUND, ViolationKind.INVALID], ViolationKind.INVALID),
        ([ViolationKind.PRECONDITION], ViolationKind.PRECONDITION),
    ],
)
def test_malformed_comes_before_missing_before_not_applicable(
    kinds: list[ViolationKind], decides: ViolationKind
) -> None:
    error = InvalidRequestError([Violation("field", "wrong", kind) for kind in kinds])
    assert error.kind is decides


def test_an_error_says_everything_that_is_wrong() -> None:
    error = InvalidRequestError([Violation("text", "empty"), Violation("sampling.top_k", "0 is below 1")])
    assert str(error) == "text: empty; sampling.top_k: 0 is below 1"


# --- what is refused by its size, before any work is done on it -------------------------------------------------------


def test_a_text_that_can_never_fit_is_refused_by_its_length() -> None:
    most = api.MAX_CHARACTERS_PER_TOKEN * MODEL.max_context_tokens
    assert request_violations(GenerationSpec(PromptText("a" * most)), MODEL) == []
    (found,) = request_violations(GenerationSpec(PromptText("a" * (most + 1))), MODEL)
    assert found.field == "text"


def test_more_ids_than_the_context_holds_are_refused_without_reading_them() -> None:
    (found,) = request_violations(GenerationSpec(PromptIds((-1,) * 65)), MODEL)
    assert found == Violation("tokens.ids", "65 tokens exceed the context of 64")


def test_explicit_positions_and_token_ids_are_bounded_over_all_rules() -> None:
    positions = prompt_rows(Positions((0,) * api.MAX_POSITIONS))
    tokens = prompt_rows(TokenSet((0,) * api.MAX_TOKEN_SET_IDS))
    within = selecting(positions, tokens, positions, tokens)
    assert request_violations(within, MODEL, None, PROMPT) == []
    (found,) = request_violations(selecting(positions, tokens, positions, tokens, tokens), MODEL)
    assert found.field == "steering.rules"
    assert found.description.startswith(f"{5 * api.MAX_POSITIONS} explicit positions and token ids")
