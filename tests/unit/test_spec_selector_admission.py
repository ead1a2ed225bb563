"""Admission of selectors: clauses that can select nothing are refused, be it by themselves or by what is excluded."""

from __future__ import annotations

import pytest

from steering_spec import Clause, GenerationSpec, Positions, TokenSet, Window, request_violations
from steering_spec import limits as api
from tests.support.admission import (
    INCLUDE,
    RULE,
    prompt_rows,
    selecting,
    steps,
    told,
    with_facts,
)

BIG = api.INT32_MAX + 1

ALONE: list[tuple[str, GenerationSpec, str]] = [
    ("no include", selecting(), f"{RULE}.selector.include"),
    ("too many clauses", selecting(*(prompt_rows(),) * (api.MAX_CLAUSES + 1)), f"{RULE}.selector.include"),
    ("no positions", selecting(steps(Positions(()))), f"{INCLUDE}.positions.positions"),
    (
        "too many positions",
        selecting(steps(Positions(tuple(range(api.MAX_POSITIONS + 1))))),
        f"{INCLUDE}.positions.positions",
    ),
    ("a negative step", selecting(steps(Positions((0, -1)))), f"{INCLUDE}.positions.positions[1]"),
    (
        "a position beyond 32 bits",
        selecting(prompt_rows(Positions((-BIG,)))),
        f"{INCLUDE}.positions.positions[0]",
    ),
    ("a window of steps from a negative one", selecting(steps(Window(-1, 4))), f"{INCLUDE}.range"),
    ("a window of steps to a negative one", selecting(steps(Window(1, -4))), f"{INCLUDE}.range"),
    ("an inverted window", selecting(steps(Window(5, 4))), f"{INCLUDE}.range"),
    ("an empty window", selecting(prompt_rows(Window(5, 5))), f"{INCLUDE}.range"),
    ("an empty window from the end", selecting(prompt_rows(Window(-1, -2))), f"{INCLUDE}.range"),
    ("a window to the beginning", selecting(prompt_rows(Window(-3, 0))), f"{INCLUDE}.range"),
    ("a window beyond 32 bits", selecting(prompt_rows(Window(0, BIG))), f"{INCLUDE}.range"),
    ("no tokens", selecting(steps(TokenSet(()))), f"{INCLUDE}.tokens.ids"),
    (
        "too many tokens",
        selecting(steps(TokenSet((0,) * (api.MAX_TOKEN_SET_IDS + 1)))),
        f"{INCLUDE}.tokens.ids",
    ),
    ("a negative token", selecting(prompt_rows(TokenSet((3, -1)))), f"{INCLUDE}.tokens.ids[1]"),
    ("a token beyond 32 bits", selecting(prompt_rows(TokenSet((BIG,)))), f"{INCLUDE}.tokens.ids[0]"),
    (
        "a fault in an exclude clause",
        selecting(steps(), exclude=(steps(Positions(())),)),
        f"{RULE}.selector.exclude[0].positions.positions",
    ),
    ("a clause that is excluded", selecting(steps(), exclude=(prompt_rows(), steps())), INCLUDE),
    (
        "the second of two clauses that is excluded",
        selecting(steps(), prompt_rows(Window(1, 3)), exclude=(prompt_rows(Positions((2, 1))),)),
        f"{RULE}.selector.include[1]",
    ),
]

WITH_FACTS: list[tuple[str, GenerationSpec, str]] = [
    (
        "a position outside the prompt",
        selecting(prompt_rows(Positions((4, 5)))),
        f"{INCLUDE}.positions.positions[1]",
    ),
    (
        "a position before the prompt",
        selecting(prompt_rows(Positions((-6,)))),
        f"{INCLUDE}.positions.positions[0]",
    ),
    ("a step beyond the context", selecting(steps(Positions((64,)))), f"{INCLUDE}.positions.positions[0]"),
    ("a window beyond the context", selecting(steps(Window(64))), f"{INCLUDE}.range"),
    ("a window outside the prompt", selecting(prompt_rows(Window(2, 6))), f"{INCLUDE}.range"),
    ("a window before the prompt", selecting(prompt_rows(Window(-6, 2))), f"{INCLUDE}.range"),
    ("a window past the prompt", selecting(prompt_rows(Window(5))), f"{INCLUDE}.range"),
    ("a window that crosses itself", selecting(prompt_rows(Window(-1, 2))), f"{INCLUDE}.range"),
    (
        "a token that is none of the model's",
        selecting(steps(TokenSet((99, 100)))),
        f"{INCLUDE}.tokens.ids[1]",
    ),
    (
        "a position that is excluded under its other name",
        selecting(prompt_rows(Positions((4,))), exclude=(prompt_rows(Positions((-1,))),)),
        INCLUDE,
    ),
    (
        "steps that are excluded as far as the context goes",
        selecting(steps(), exclude=(steps(Window(0, 64)),)),
        INCLUDE,
    ),
]


@pytest.mark.parametrize(("spec", "field"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_a_fault_of_a_selector_alone_is_found_without_any_facts(spec: GenerationSpec, field: str) -> None:
    assert told(request_violations(spec)) == [(field, "INVALID")]


@pytest.mark.parametrize(
    ("spec", "field"), [case[1:] for case in WITH_FACTS], ids=[case[0] for case in WITH_FACTS]
)
def test_a_fault_against_the_prompt_is_found_with_it(spec: GenerationSpec, field: str) -> None:
    assert request_violations(spec) == []
    assert told(with_facts(spec)) == [(field, "INVALID")]


@pytest.mark.parametrize(
    "spec",
    [
        selecting(prompt_rows(Positions((0, 4, -1, -5)))),
        selecting(prompt_rows(Window(-5, -1))),
        selecting(prompt_rows()),
        selecting(steps(Window(0))),
        selecting(steps(Positions((58,)))),
        selecting(steps(TokenSet((0, 99, 0)))),
        selecting(prompt_rows(TokenSet((77,)))),
        selecting(steps(), exclude=(steps(Positions((0,))), steps(TokenSet((5,))))),
    ],
)
def test_a_sound_selector_passes(spec: GenerationSpec) -> None:
    assert request_violations(spec) == []
    assert with_facts(spec) == []


def test_a_faulty_clause_excludes_nothing_and_is_not_told_of_twice() -> None:
    inverted: tuple[Clause, ...] = (steps(Window(9, 0)),)
    found = request_violations(selecting(*inverted, steps(), exclude=inverted))
    assert told(found) == [
        (f"{INCLUDE}.range", "INVALID"),
        (f"{RULE}.selector.exclude[0].range", "INVALID"),
    ]
