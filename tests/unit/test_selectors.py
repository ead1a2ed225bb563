"""Where a rule acts. Rows are counted from the prompt's start; the last prompt row is step 0."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering.selectors import resolve_selector
from steering_spec import Clause, Phase, Positions, Selector, Window
from steering_spec.selector_admission import selector_violations

ROWS = 24


def chosen_prompt_rows(selector: Selector, prompt_length: int) -> list[int]:
    resolved = resolve_selector(selector, (0,) * prompt_length)
    return [row for row in range(prompt_length) if resolved.selects_prompt_row(row)]


def chosen_steps(selector: Selector, prompt_length: int = 5, count: int = 10) -> list[int]:
    resolved = resolve_selector(selector, (0,) * prompt_length)
    return [step for step in range(count) if resolved.selects_step(step)]


def test_by_default_every_step_is_chosen_and_no_prompt_row() -> None:
    assert chosen_steps(Selector()) == list(range(10))
    assert chosen_prompt_rows(Selector(), 5) == []


def test_steps_are_chosen_one_by_one() -> None:
    assert chosen_steps(Selector.steps(0, 7, 2)) == [0, 2, 7]


def test_a_window_of_steps_is_half_open() -> None:
    assert chosen_steps(Selector.step_window(2, 5)) == [2, 3, 4]


def test_a_window_of_steps_may_be_open() -> None:
    assert chosen_steps(Selector.step_window(7)) == [7, 8, 9]


def test_negative_prompt_positions_count_from_the_prompts_end() -> None:
    assert chosen_prompt_rows(Selector.prompt_positions(0, -1, -2), 5) == [0, 3, 4]


def test_a_prompt_window_is_half_open_and_may_be_negative() -> None:
    assert chosen_prompt_rows(Selector.prompt_window(1, 3), 5) == [1, 2]
    assert chosen_prompt_rows(Selector.prompt_window(-3, -1), 5) == [2, 3]
    assert chosen_prompt_rows(Selector.prompt_window(-2), 5) == [3, 4]


def test_step_0_is_the_row_of_the_last_prompt_token() -> None:
    resolved = resolve_selector(Selector.steps(0), (0,) * 5)
    assert resolved.first_row() == 4


def test_step_j_is_the_row_of_generated_token_j_minus_1() -> None:
    resolved = resolve_selector(Selector.steps(3), (0,) * 5)
    assert resolved.first_row() == 5 + 3 - 1


def test_the_last_prompt_row_belongs_to_both_phases() -> None:
    last_prompt_row = (Clause(Phase.PROMPT, Positions((-1,))),)
    step_0 = (Clause(Phase.GENERATION, Positions((0,))),)
    assert chosen_steps(Selector(exclude=last_prompt_row)) == list(range(1, 10))
    assert chosen_prompt_rows(Selector((Clause(Phase.PROMPT),), step_0), 5) == [0, 1, 2, 3]


def test_exclusions_always_win() -> None:
    everything = (Clause(Phase.PROMPT), Clause(Phase.GENERATION))
    assert chosen_steps(Selector(everything, everything)) == []
    assert chosen_prompt_rows(Selector(everything, everything), 5) == []


def test_the_first_row_is_that_of_the_earliest_clause() -> None:
    clauses = (Clause(Phase.GENERATION, Window(4)), Clause(Phase.PROMPT, Window(-2)))
    assert resolve_selector(Selector(clauses), (0,) * 10).first_row() == 8


positions = st.lists(st.integers(-ROWS, ROWS), min_size=1, max_size=4).map(
    lambda found: Positions(tuple(found))
)
windows = st.builds(Window, st.integers(-ROWS, ROWS), st.none() | st.integers(-ROWS, ROWS))
clauses = st.builds(Clause, st.sampled_from(Phase), st.none() | positions | windows)
selectors = st.builds(
    Selector,
    st.lists(clauses, min_size=1, max_size=3).map(tuple),
    st.lists(clauses, max_size=2).map(tuple),
)


def names_row(clause: Clause, row: int, prompt_length: int) -> bool:
    """Whether a clause names a row, straight from the definitions: the row's own names in the phase are compared."""
    if clause.phase is Phase.PROMPT:
        if not 0 <= row < prompt_length:
            return False
        names = {row, row - prompt_length}
        size = prompt_length
    else:
        if row < prompt_length - 1:
            return False
        names = {row - (prompt_length - 1)}
        size = 10**9
    if clause.predicate is None:
        return True
    if isinstance(clause.predicate, Positions):
        return not names.isdisjoint(clause.predicate.positions)
    start, end, _ = slice(clause.predicate.start, clause.predicate.end).indices(size)
    return start <= max(names) < end


@given(selectors, st.integers(1, 10))
@settings(max_examples=300)
def test_a_selector_chooses_what_its_definition_says(selector: Selector, prompt_length: int) -> None:
    if list(selector_violations("selector", selector, prompt_length)):
        return  # admission refuses it, so nobody resolves it
    resolved = resolve_selector(selector, (0,) * prompt_length)
    chosen = []
    for row in range(prompt_length + ROWS):
        excluded = any(names_row(clause, row, prompt_length) for clause in selector.exclude)
        named = {
            phase: not excluded
            and any(
                names_row(clause, row, prompt_length) for clause in selector.include if clause.phase is phase
            )
            for phase in Phase
        }
        assert resolved.selects_prompt_row(row) == named[Phase.PROMPT]
        if row >= prompt_length - 1:
            assert resolved.selects_step(row - prompt_length + 1) == named[Phase.GENERATION]
        if any(named.values()):
            chosen.append(row)
    first = resolved.first_row()
    assert first is not None
    assert not chosen or first <= chosen[0]


@given(selectors, st.integers(1, 10), st.integers(0, ROWS))
@settings(max_examples=300)
def test_between_two_changes_all_steps_are_chosen_or_none(
    selector: Selector, prompt_length: int, step: int
) -> None:
    if list(selector_violations("selector", selector, prompt_length)):
        return
    resolved = resolve_selector(selector, (0,) * prompt_length)
    until = resolved.same_until(step)
    assert until > step
    for other in range(step, int(min(until, step + ROWS))):
        assert resolved.selects_step(other) == resolved.selects_step(step)


def test_a_choice_that_never_changes_again_is_the_same_for_ever() -> None:
    assert resolve_selector(Selector(), (0,) * 5).same_until(0) == math.inf
    window = resolve_selector(Selector.step_window(2, 4), (0,) * 5)
    assert [window.same_until(step) for step in range(5)] == [2, 2, 4, 4, math.inf]


def test_a_choice_by_tokens_may_change_at_every_step() -> None:
    assert resolve_selector(Selector.after_tokens(7), (0,) * 5).same_until(3) == 4
