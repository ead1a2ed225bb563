"""Matching the ids so far against the pivot contexts of a vector file.

A context is the last ids before a recorded pivot. At a step, the match is the longest common suffix of the ids so far
and any context; it counts when it is long enough. Suffixes are kept as a trie over *reversed* ids and walked backwards
from the newest id. That answers "longest suffix of any context" exactly (an Aho-Corasick automaton over whole contexts
would only report whole contexts), and costs one dictionary look-up at a step where nothing matches, however many
contexts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steering_spec.limits import MAX_CONTEXT_MATCH

MAX_CONTEXT_TOKENS = MAX_CONTEXT_MATCH
"""Longest recorded context; more ids than that have never to be compared, which bounds the cost of a step."""

BYTES_PER_ID = 300
"""What an id of a context takes about, ready for matching."""


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
        node = self._root
        for length, token_id in enumerate(reversed(history)):
            child = node.get(token_id)
            if child is None:
                return length
            node = child
        return len(history)
