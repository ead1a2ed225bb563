"""What selectors choose, straight from the definitions and row by row; and random clauses to compare with."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from steering_spec import Clause, Phase, Positions, Selector, TokenSet, Window
from steering_spec.selector_admission import selector_violations

BOUND = 6
"""No random position, step or bound is farther from 0."""
TOKENS = 3
"""Random token sets have ids below this; the id itself stands for every other token."""


def names(clause: Clause, row: int, token: int, prompt_length: int) -> bool:
    """Whether a clause names a row, counted from the prompt's start, whose own token is `token`."""
    index = row if clause.phase is Phase.PROMPT else row - (prompt_length - 1)
    count = prompt_length if clause.phase is Phase.PROMPT else 10**9
    if not 0 <= index < count:
        return False
    match clause.predicate:
        case Positions(positions):
            return index in positions or index - count in positions
        case Window(start, end):
            return index in range(*slice(start, end).indices(count))
        case TokenSet(ids):
            return token in ids
    return True


def chooses(selector: Selector, row: int, token: int, prompt_length: int) -> bool:
    """Whether a selector chooses a row whose own token is `token`."""
    return any(names(clause, row, token, prompt_length) for clause in selector.include) and not any(
        names(clause, row, token, prompt_length) for clause in selector.exclude
    )


def rows_and_tokens(prompt_length: int) -> Iterator[tuple[int, int]]:
    """Every row that random clauses tell apart, with every token that they tell apart."""
    return ((row, token) for row in range(prompt_length + BOUND + 2) for token in range(TOKENS + 1))


def is_sound(clause: Clause, prompt_length: int | None) -> bool:
    """Whether a clause has no fault of its own."""
    return not list(selector_violations("", Selector((clause,)), prompt_length))


_prompt_numbers = st.integers(-BOUND, BOUND)
_steps = st.integers(0, BOUND)


def _clauses(phase: Phase, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Clause]:
    positions = st.lists(numbers, min_size=1, max_size=4).map(lambda found: Positions(tuple(found)))
    windows = st.builds(Window, numbers, st.none() | numbers)
    token_sets = st.frozensets(st.integers(0, TOKENS - 1), min_size=1).map(lambda ids: TokenSet(tuple(ids)))
    return st.builds(Clause, st.just(phase), st.none() | positions | windows | token_sets)


clauses = _clauses(Phase.PROMPT, _prompt_numbers) | _clauses(Phase.GENERATION, _steps)


def lists_of_clauses(min_size: int, max_size: int) -> st.SearchStrategy[list[Clause]]:
    return st.lists(clauses, min_size=min_size, max_size=max_size)


selectors = st.builds(Selector, lists_of_clauses(1, 2).map(tuple), lists_of_clauses(0, 3).map(tuple))
