"""Admission: every fault of a request is found, named by its field, and told together with the others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from steering_spec import (
    Chat,
    ChatMessage,
    Clause,
    ContextTrigger,
    GenerationSpec,
    InvalidRequestError,
    ModelFacts,
    Phase,
    Positions,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
    VectorFacts,
    VectorRef,
    Violation,
    ViolationKind,
    Window,
    request_violations,
)
from steering_spec import limits as api

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


def find_vector(ref: VectorRef) -> VectorFacts | None:
    """`sound` has directions at blocks 0 and 2 and one context; `bare` has no contexts; nothing else is loaded."""
    contexts = {"sound": 1, "bare": 0}
    return VectorFacts(DIGEST, (0, 2), contexts[ref.id]) if ref.id in contexts else None


def steered(**rule: object) -> GenerationSpec:
    return replace(PLAIN, steering=SteeringSpec((SteeringRule(**{"vector": "sound", **rule}),)))


def selecting(*include: Clause, exclude: tuple[Clause, ...] = ()) -> GenerationSpec:
    return steered(selector=Selector(include, exclude))


def prompt_rows(predicate: Positions | Window | None) -> GenerationSpec:
    return selecting(Clause(Phase.PROMPT, predicate))


def steps(predicate: Positions | Window | None) -> GenerationSpec:
    return selecting(Clause(Phase.GENERATION, predicate))


def sampled(**sampling: object) -> GenerationSpec:
    return replace(PLAIN, sampling=SamplingParams(**sampling))


RULE = "steering.rules[0]"
CLAUSE = f"{RULE}.selector.include[0]"
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
    ("temperature below 0", sampled(temperature=-0.1), "sampling.temperature"),
    ("temperature above the limit", sampled(temperature=api.MAX_TEMPERATURE + 1), "sampling.temperature"),
    ("temperature NaN", sampled(temperature=math.nan), "sampling.temperature"),
    ("top_p 0", sampled(top_p=0.0), "sampling.top_p"),
    ("top_p above 1", sampled(top_p=1.01), "sampling.top_p"),
    ("top_p NaN", sampled(top_p=math.nan), "sampling.top_p"),
    ("min_p below 0", sampled(min_p=-0.01), "sampling.min_p"),
    ("min_p above 1", sampled(min_p=1.01), "sampling.min_p"),
    ("min_p NaN", sampled(min_p=math.nan), "sampling.min_p"),
    ("a banned id below 0", sampled(banned_first_ids=(3, -1)), "sampling.banned_first_ids[1]"),
    ("too many banned ids", sampled(banned_first_ids=tuple(range(65))), "sampling.banned_first_ids"),
    ("top_k 0", sampled(top_k=0), "sampling.top_k"),
    ("top_k beyond 32 bits", sampled(top_k=BIG), "sampling.top_k"),
    ("max_tokens 0", sampled(max_tokens=0), "sampling.max_token_count"),
    ("max_tokens beyond 32 bits", sampled(max_tokens=BIG), "sampling.max_token_count"),
    ("a seed beyond 64 bits", sampled(seed=2**63), "sampling.seed"),
    ("a seed below 64 bits", sampled(seed=-(2**63) - 1), "sampling.seed"),
    ("too many stops", sampled(stop=("x",) * (api.MAX_STOP_SEQUENCES + 1)), "sampling.stop_sequences"),
    ("an empty stop", sampled(stop=("x", "")), "sampling.stop_sequences[1]"),
    ("a long stop", sampled(stop=("x" * 257,)), "sampling.stop_sequences[0]"),
    ("a long id", replace(PLAIN, request_id="x" * 129), "request_id"),
    (
        "too many rules",
        replace(PLAIN, steering=SteeringSpec((SteeringRule("sound"),) * (api.MAX_RULES + 1))),
        "steering.rules",
    ),
    ("a malformed vector name", steered(vector="Not A Name"), f"{RULE}.vector"),
    ("an infinite strength", steered(strength=math.inf), f"{RULE}.strength"),
    ("a strength NaN", steered(strength=math.nan), f"{RULE}.strength"),
    ("too much strength", steered(strength=-1001.0), f"{RULE}.strength"),
    ("a negative block", steered(layers=(0, -1)), f"{RULE}.layers[1]"),
    ("a block named twice", steered(layers=(0, 2, 0)), f"{RULE}.layers[2]"),
    ("a block beyond 32 bits", steered(layers=(BIG,)), f"{RULE}.layers[0]"),
    (
        "a match of 0 tokens",
        steered(trigger=ContextTrigger(min_match_tokens=0)),
        f"{RULE}.trigger.context.min_match_token_count",
    ),
    (
        "holding for 0 steps",
        steered(trigger=ContextTrigger(hold_steps=0)),
        f"{RULE}.trigger.context.hold_step_count",
    ),
    (
        "a negative cooldown",
        steered(trigger=ContextTrigger(cooldown_steps=-1)),
        f"{RULE}.trigger.context.cooldown_step_count",
    ),
    ("no firings", steered(trigger=ContextTrigger(max_firings=0)), f"{RULE}.trigger.max_firing_count"),
    ("no include", selecting(), f"{RULE}.selector.include"),
    (
        "too many clauses",
        selecting(*(Clause(Phase.PROMPT),) * (api.MAX_CLAUSES + 1)),
        f"{RULE}.selector.include",
    ),
    ("no positions", steps(Positions(())), f"{CLAUSE}.positions"),
    (
        "too many positions",
        steps(Positions(tuple(range(api.MAX_POSITIONS + 1)))),
        f"{CLAUSE}.positions",
    ),
    ("a negative step", steps(Positions((0, -1))), f"{CLAUSE}.positions[1]"),
    ("a position beyond 32 bits", prompt_rows(Positions((-BIG,))), f"{CLAUSE}.positions[0]"),
    ("a window of steps from a negative one", steps(Window(-1, 4)), f"{CLAUSE}.range"),
    ("a window of steps to a negative one", steps(Window(1, -4)), f"{CLAUSE}.range"),
    ("an inverted window", steps(Window(5, 4)), f"{CLAUSE}.range"),
    ("an empty window", prompt_rows(Window(5, 5)), f"{CLAUSE}.range"),
    ("an empty window from the end", prompt_rows(Window(-1, -2)), f"{CLAUSE}.range"),
    ("a window beyond 32 bits", prompt_rows(Window(0, BIG)), f"{CLAUSE}.range"),
    (
        "a fault in an exclude clause",
        selecting(Clause(Phase.GENERATION), exclude=(Clause(Phase.GENERATION, Positions(())),)),
        f"{RULE}.selector.exclude[0].positions",
    ),
]

WITH_FACTS: list[tuple[str, GenerationSpec, str, ViolationKind]] = [
    ("another model", replace(PLAIN, model="models/other"), "model", ViolationKind.NOT_FOUND),
    (
        "an id outside the vocabulary",
        GenerationSpec(PromptIds((1, 100))),
        "tokens.ids[1]",
        ViolationKind.INVALID,
    ),
    ("a block the model has not", steered(layers=(4,)), f"{RULE}.layers[0]", ViolationKind.INVALID),
    ("an unloaded vector", steered(vector="absent"), f"{RULE}.vector", ViolationKind.NOT_FOUND),
    ("another digest", steered(vector=f"sound@{'b' * 64}"), f"{RULE}.vector", ViolationKind.INVALID),
    (
        "a block the vector has not",
        steered(layers=(0, 1)),
        f"{RULE}.layers[1]",
        ViolationKind.PRECONDITION,
    ),
    (
        "a trigger without contexts",
        steered(vector="bare", trigger=ContextTrigger()),
        f"{RULE}.trigger",
        ViolationKind.PRECONDITION,
    ),
    (
        "a banned id that is none of the model's",
        sampled(banned_first_ids=(0, 100)),
        "sampling.banned_first_ids[1]",
        ViolationKind.INVALID,
    ),
    ("more tokens than fit", sampled(max_tokens=60), "sampling.max_token_count", ViolationKind.INVALID),
    (
        "a position outside the prompt",
        prompt_rows(Positions((4, 5))),
        f"{CLAUSE}.positions[1]",
        ViolationKind.INVALID,
    ),
    (
        "a position before the prompt",
        prompt_rows(Positions((-6,))),
        f"{CLAUSE}.positions[0]",
        ViolationKind.INVALID,
    ),
    ("a step beyond the context", steps(Positions((64,))), f"{CLAUSE}.positions[0]", ViolationKind.INVALID),
    ("a window beyond the context", steps(Window(64)), f"{CLAUSE}.range", ViolationKind.INVALID),
    ("a window outside the prompt", prompt_rows(Window(2, 6)), f"{CLAUSE}.range", ViolationKind.INVALID),
    ("a window before the prompt", prompt_rows(Window(-6, 2)), f"{CLAUSE}.range", ViolationKind.INVALID),
    ("a window past the prompt", prompt_rows(Window(5)), f"{CLAUSE}.range", ViolationKind.INVALID),
    ("a window that crosses itself", prompt_rows(Window(-1, 2)), f"{CLAUSE}.range", ViolationKind.INVALID),
]


@pytest.mark.parametrize(("spec", "field"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_a_fault_of_the_request_alone_is_found_without_any_facts(spec: GenerationSpec, field: str) -> None:
    assert [(found.field, found.kind) for found in request_violations(spec)] == [
        (field, ViolationKind.INVALID)
    ]


@pytest.mark.parametrize(
    ("spec", "field", "kind"), [case[1:] for case in WITH_FACTS], ids=[case[0] for case in WITH_FACTS]
)
def test_a_fault_against_the_server_is_found_with_its_facts(
    spec: GenerationSpec, field: str, kind: ViolationKind
) -> None:
    assert request_violations(spec, None) == []
    found = request_violations(spec, MODEL, find_vector, PROMPT)
    assert [(one.field, one.kind) for one in found] == [(field, kind)]


@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        GenerationSpec(Chat((ChatMessage("system", ""), ChatMessage("assistant", "so")), True)),
        replace(PLAIN, model="models/tiny", request_id="x" * 128),
        sampled(
            temperature=0.0,
            top_p=1.0,
            min_p=1.0,
            banned_first_ids=tuple(range(36, 100)),
            top_k=1,
            max_tokens=59,
            seed=-(2**63),
            stop=("x" * 256,) * 16,
        ),
        steered(strength=-1000.0, layers=(2, 0), trigger=ContextTrigger(1, 1, 0, 1)),
        steered(vector=f"vectors/sound@{DIGEST}", strength=0.0),
        prompt_rows(Positions((0, 4, -1, -5))),
        prompt_rows(Window(-5, -1)),
        prompt_rows(None),
        steps(Window(0)),
        steps(Positions((63,))),
        replace(PLAIN, steering=SteeringSpec(())),
    ],
)
def test_a_sound_request_passes(spec: GenerationSpec) -> None:
    assert request_violations(spec) == []
    assert request_violations(spec, MODEL, find_vector, PROMPT) == []


def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    found = request_violations(PLAIN, MODEL, find_vector, (1,) * 64)
    assert [one.field for one in found] == ["prompt"]


def test_a_text_whose_tokens_the_model_does_not_know_is_refused() -> None:
    found = request_violations(PLAIN, MODEL, find_vector, (1, 100))
    assert [one.field for one in found] == ["prompt"]


def test_a_model_without_a_template_takes_no_chat() -> None:
    spec = GenerationSpec(Chat((ChatMessage("user", "x"),)))
    found = request_violations(spec, replace(MODEL, chat_supported=False))
    assert [(one.field, one.kind) for one in found] == [("chat", ViolationKind.PRECONDITION)]


def test_five_faults_come_back_at_once() -> None:
    spec = GenerationSpec(
        PromptText(""),
        SamplingParams(temperature=-1, top_p=2),
        SteeringSpec(
            (
                SteeringRule("absent"),
                SteeringRule("sound", math.nan, selector=Selector.steps(3, -2)),
            )
        ),
    )
    found = request_violations(spec, MODEL, find_vector, PROMPT)
    assert [one.field for one in found] == [
        "text",
        "sampling.temperature",
        "sampling.top_p",
        "steering.rules[0].vector",
        "steering.rules[1].strength",
        "steering.rules[1].selector.include[0].positions[1]",
    ]


def test_the_number_of_faults_told_is_bounded() -> None:
    assert len(request_violations(steps(Positions((-1,) * 60_000)))) == api.MAX_VIOLATIONS


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


def test_explicit_positions_are_bounded_over_all_rules() -> None:
    clauses = tuple(Clause(Phase.PROMPT, Positions((0,) * api.MAX_POSITIONS)) for _ in range(5))
    (found,) = request_violations(selecting(*clauses), MODEL)
    assert found.field == "steering.rules"
    assert found.description.startswith(f"{5 * api.MAX_POSITIONS} explicit positions")


def test_a_match_longer_than_any_context_is_refused() -> None:
    assert request_violations(steered(trigger=ContextTrigger(min_match_tokens=64)), MODEL) == []
    (found,) = request_violations(steered(trigger=ContextTrigger(min_match_tokens=65)), MODEL)
    assert found.field == "steering.rules[0].trigger.context.min_match_token_count"
