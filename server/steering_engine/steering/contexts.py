"""When a rule acts: matching the ids so far against the pivot contexts of a vector file.

A context is the last ids before a recorded pivot. At a step, the match is the longest common suffix of the ids so far
and any context; it counts when it is long enough. Suffixes are kept as a trie over *reversed* ids and walked backwards
from the newest id. That answers "longest suffix of any context" exactly (an Aho-Corasick automaton over whole contexts
would only report whole contexts), and costs one dictionary look-up at a step where nothing matches, however many
contexts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steering_spec import ContextTrigger
from steering_spec.limits import MAX_CONTEXT_MATCH

MAX_CONTEXT_TOKENS = MAX_CONTEXT_MATCH
"""Longest recorded context; more ids than that have never to be compared, which bounds the cost of a step."""


class _Node(dict[int, "_Node"]):
    """Children by id; the ids are read from the newest to the oldest."""


class ContextIndex:
    """The contexts of one vector, ready for matching; shared by all requests that use the vector."""

    def __init__(self, contexts: Iterable[Sequence[int]]) -> None:
        """Builds the index from contexts, each oldest id first."""
        self._root = _Node()
        for context in contexts:
            node = self._root
            for token_id in reversed(context[-MAX_CONTEXT_TOKENS:]):
                node = node.setdefault(token_id, _Node())

    def longest_match(self, history: Sequence[int]) -> int:
        """How many of the newest ids of `history` are the end of some context; 0 for none."""
        node: _Node | None = self._root
        for length in range(len(history)):
            assert node is not None  # noqa: S101 -- narrows the type for the checker
            node = node.get(history[-1 - length])
            if node is None:
                return length
        return len(history)


@dataclass(frozen=True, slots=True)
class CompiledTrigger:
    """A context trigger with every default filled in."""

    index: ContextIndex
    min_match_tokens: int
    hold_steps: int
    cooldown_steps: int
    max_firings: int | None

    @classmethod
    def compile(cls, trigger: ContextTrigger, index: ContextIndex, default_min_match: int) -> CompiledTrigger:
        """Fills the defaults of `trigger` from the vector file's own minimum match."""
        return cls(
            index=index,
            min_match_tokens=trigger.min_match_tokens or default_min_match,
            hold_steps=trigger.hold_steps,
            cooldown_steps=trigger.cooldown_steps,
            max_firings=trigger.max_firings,
        )


class TriggerState:
    """One trigger while one completion is generated; asked exactly once per step, in order."""

    def __init__(self, trigger: CompiledTrigger) -> None:
        self._trigger = trigger
        self._firings = 0
        self._held_until = 0
        self._ready_from = 0

    def decide(self, step: int, selected: bool, history: Sequence[int]) -> int | None:
        """Whether the rule acts at this step.

        A firing needs a step that the selector chose. While a firing is held, and during its cooldown, matches are
        not looked at.

        Args:
            step: The step to decide.
            selected: Whether the rule's selector chose it.
            history: All ids before the token that this step predicts.

        Returns:
            None when it doesn't act, the length of the match where it fires, 0 where an earlier firing is held.
        """
        if step < self._held_until:
            return 0 if selected else None
        exhausted = self._trigger.max_firings is not None and self._firings >= self._trigger.max_firings
        if not selected or exhausted or step < self._ready_from:
            return None
        match = self._trigger.index.longest_match(history[-MAX_CONTEXT_TOKENS:])
        if match < self._trigger.min_match_tokens:
            return None
        self._firings += 1
        self._held_until = step + self._trigger.hold_steps
        self._ready_from = self._held_until + self._trigger.cooldown_steps
        return match
