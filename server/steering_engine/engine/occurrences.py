"""Which tokens a request holds already, counted as they come: what penalties depend on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch


class Occurrences:
    """The distinct ids of a prompt, and how often the completion holds its own.

    Attributes:
        prompt_ids: `[n]` int64, ascending.
    """

    def __init__(self, prompt_ids: Iterable[int] = ()) -> None:
        self.prompt_ids = torch.tensor(sorted(set(prompt_ids)), dtype=torch.int64)
        self._places: dict[int, int] = {}
        self._ids = array("q")
        self._counts = array("q")

    def add(self, token_id: int) -> None:
        """Takes the newest token of the completion."""
        place = self._places.setdefault(token_id, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0)
        self._counts[place] += 1

    def completion_ids(self) -> torch.Tensor:
        """The distinct ids of the completion in the order of their first coming, `[n]` int64."""
        return _copied(self._ids)

    def completion_counts(self) -> torch.Tensor:
        """How often the completion holds each of them, `[n]` int64."""
        return _copied(self._counts)


def _copied(values: array[int]) -> torch.Tensor:
    # A copy, since an array can't grow while a tensor looks at it; without going through objects of Python.
    return (
        torch.frombuffer(values, dtype=torch.int64).clone() if values else torch.empty(0, dtype=torch.int64)
    )
