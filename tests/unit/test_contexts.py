"""Matching the ids so far against recorded contexts."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS, ContextIndex

ids = st.integers(0, 3)
contexts = st.lists(st.lists(ids, min_size=1, max_size=6), max_size=6)


def longest_common_suffix(history: Sequence[int], context: Sequence[int]) -> int:
    length = 0
    while length < min(len(history), len(context)) and history[-1 - length] == context[-1 - length]:
        length += 1
    return length


@given(contexts, st.lists(ids, max_size=12))
@settings(max_examples=500)
def test_the_match_is_the_longest_common_suffix_with_any_context(
    recorded: list[list[int]], history: list[int]
) -> None:
    expected = max((longest_common_suffix(history, context) for context in recorded), default=0)
    assert ContextIndex(recorded).longest_match(history) == expected


def test_a_context_counts_with_its_newest_ids_only() -> None:
    context = list(range(MAX_CONTEXT_TOKENS + 10))
    assert ContextIndex([context]).longest_match(context) == MAX_CONTEXT_TOKENS
