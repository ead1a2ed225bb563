"""What excludes leave of an include clause, compared with going through all rows and tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_spec import Clause, Positions, Selector, TokenSet, Window
from steering_spec.exclusion import Exclusion
from tests.support.admission import prompt_rows, steps
from tests.support.clauses import chooses, clauses, is_sound, lists_of_clauses, rows_and_tokens

prompt_lengths = st.integers(1, 9)


def selects_nothing(include: Clause, excludes: list[Clause], prompt_length: int) -> bool:
    selector = Selector((include,), tuple(excludes))
    return not any(
        chooses(selector, row, token, prompt_length) for row, token in rows_and_tokens(prompt_length)
    )


@given(clauses, lists_of_clauses(1, 4), prompt_lengths)
@settings(max_examples=1000)
def test_a_clause_is_hidden_exactly_when_no_row_with_any_token_is_left_of_it(
    include: Clause, excludes: list[Clause], prompt_length: int
) -> None:
    if all(is_sound(clause, prompt_length) for clause in (include, *excludes)):
        hidden = Exclusion.of(excludes, prompt_length).hides(include)
        assert hidden == selects_nothing(include, excludes, prompt_length)


@given(clauses, lists_of_clauses(1, 4))
@settings(max_examples=1000)
def test_what_is_hidden_without_the_prompts_length_is_hidden_with_every_length(
    include: Clause, excludes: list[Clause]
) -> None:
    everything = (include, *excludes)
    if all(is_sound(clause, None) for clause in everything) and Exclusion.of(excludes).hides(include):
        for prompt_length in range(1, 20):
            if all(is_sound(clause, prompt_length) for clause in everything):
                assert selects_nothing(include, excludes, prompt_length)


HIDDEN: list[tuple[str, Clause, list[Clause]]] = [
    ("the same steps", steps(Positions((3, 5))), [steps(Positions((5, 3)))]),
    ("all steps", steps(Window(2)), [steps()]),
    ("steps in two parts", steps(), [steps(Window(0, 4)), steps(Window(4))]),
    ("steps one by one", steps(Window(1, 4)), [steps(Positions((1, 3))), steps(Positions((2,)))]),
    ("step 0, as the last prompt position", steps(Positions((0,))), [prompt_rows(Positions((-1,)))]),
    ("step 0, as part of the prompt", steps(Positions((0,))), [prompt_rows()]),
    ("step 0, as the end of an open window", steps(Window(0, 1)), [prompt_rows(Window(2))]),
    ("the last prompt position, as step 0", prompt_rows(Positions((-1,))), [steps()]),
    ("the same positions", prompt_rows(Positions((1, 2))), [prompt_rows(Window(0, 3))]),
    ("positions from the end", prompt_rows(Positions((-2,))), [prompt_rows(Window(-3))]),
    ("the whole prompt", prompt_rows(Window(-3, -1)), [prompt_rows()]),
    ("the prompt in two parts", prompt_rows(), [prompt_rows(Window(0, 3)), prompt_rows(Window(3))]),
    (
        "the prompt in parts from its end",
        prompt_rows(),
        [prompt_rows(Window(0, -3)), prompt_rows(Window(-3))],
    ),
    ("its tokens", steps(TokenSet((1, 2))), [steps(TokenSet((2,))), steps(TokenSet((1, 0)))]),
    ("all rows of its tokens", steps(TokenSet((1,))), [steps()]),
    ("its tokens or its rows", steps(TokenSet((1,))), [prompt_rows(Positions((-1,))), steps(Window(1))]),
]

LEFT: list[tuple[str, Clause, list[Clause]]] = [
    ("one more step", steps(Positions((3, 5))), [steps(Positions((3,)))]),
    ("the later steps", steps(), [steps(Window(0, 40))]),
    ("all steps but step 0", steps(), [prompt_rows()]),
    ("all of the prompt but its end", prompt_rows(), [steps()]),
    ("one more token", steps(TokenSet((1, 2))), [steps(TokenSet((1,)))]),
    ("the tokens of the other phase", steps(TokenSet((1,))), [prompt_rows(TokenSet((1,)))]),
    ("rows that may hold another token", steps(Positions((1,))), [steps(TokenSet((1,)))]),
    ("a row before the window in a short prompt", prompt_rows(Positions((-5,))), [prompt_rows(Window(3))]),
]


@pytest.mark.parametrize(("include", "excludes"), [one[1:] for one in HIDDEN], ids=[one[0] for one in HIDDEN])
def test_a_clause_is_hidden_by_the_exclusion_of(include: Clause, excludes: list[Clause]) -> None:
    assert Exclusion.of(excludes).hides(include)
    assert Exclusion.of(excludes, prompt_length=7).hides(include)


@pytest.mark.parametrize(("include", "excludes"), [one[1:] for one in LEFT], ids=[one[0] for one in LEFT])
def test_what_is_left_of_a_clause_can_be(include: Clause, excludes: list[Clause]) -> None:
    assert not Exclusion.of(excludes).hides(include)
    assert not Exclusion.of(excludes, prompt_length=5).hides(include)


def test_what_depends_on_the_prompts_length_is_judged_with_it() -> None:
    excludes, include = [prompt_rows(Window(3))], prompt_rows(Positions((-5,)))
    assert not Exclusion.of(excludes).hides(include)
    assert not Exclusion.of(excludes, 7).hides(include)
    assert Exclusion.of(excludes, 8).hides(include)


def test_steps_that_can_never_be_reached_are_none_that_are_left() -> None:
    excludes = [steps(Window(0, 40))]
    assert not Exclusion.of(excludes, 5, max_steps=41).hides(steps())
    assert Exclusion.of(excludes, 5, max_steps=40).hides(steps())
    assert Exclusion.of(excludes, None, max_steps=40).hides(steps(TokenSet((1,))))
