"""Token sequences that share beginnings: each prefix is one node, so what is known of a place is kept once."""

from __future__ import annotations

from collections.abc import Sequence

ROOT = 0


class PrefixTrie:
    """Prefixes as numbered nodes; the empty one is 0."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}

    def add(self, ids: Sequence[int]) -> list[int]:
        """The nodes of all prefixes of a sequence, from the empty one to itself: `[len(ids) + 1]`."""
        nodes = [ROOT]
        for token_id in ids:
            nodes.append(self._children.setdefault((nodes[-1], token_id), len(self._children) + 1))
        return nodes

    def path(self, ids: Sequence[int]) -> list[int]:
        """The nodes of its prefixes that are there, from the empty one on."""
        nodes = [ROOT]
        for token_id in ids:
            child = self._children.get((nodes[-1], token_id))
            if child is None:
                break
            nodes.append(child)
        return nodes

    def find(self, ids: Sequence[int]) -> int | None:
        """The node of a sequence; None where it is no prefix of what was added."""
        path = self.path(ids)
        return path[-1] if len(path) == len(ids) + 1 else None
