"""Watches a completion as it grows, for oracles whose answer is closed by a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class LineWatcher:
    """An `AnswerWatcher` that closes with the first whole line that decides.

    `decides` is called once with every line, in order and without its newline, when the line has ended, until it
    returns True. A line that has not ended is never shown: what is still to come may change it.
    """

    decides: Callable[[str], bool]
    _pieces: list[str] = field(default_factory=list, init=False)
    _closed: bool = field(default=False, init=False)

    def __call__(self, piece: str) -> bool:
        """Whether the answer is closed with this piece."""
        if self._closed or "\n" not in piece:
            self._pieces.append(piece)
            return self._closed
        first, *others = piece.split("\n")
        ended = ["".join([*self._pieces, first]), *others[:-1]]
        self._pieces = others[-1:]
        self._closed = any(self.decides(line) for line in ended)
        return self._closed
