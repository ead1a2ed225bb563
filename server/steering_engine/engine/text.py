"""Text of a completion while it grows: whole characters only, and never a part of a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns token ids into text that is final.

    A byte-level token may end inside a character: the text waits until the character is whole. Text that may still
    become a stop sequence waits too, and once a stop sequence is complete, it and everything after it is dropped.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """`tokenizer` is a fast tokenizer of transformers."""
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._waiting = ""
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """Takes one token; returns the text that is now final. Sets `stopped` when a stop sequence is complete."""
        if self.stopped:
            return ""
        self._waiting += self._stream.step(self._backend, token_id) or ""
        ends = [at for text in self._stop if (at := self._waiting.find(text)) >= 0]
        if ends:
            self.stopped = True
            final, self._waiting = self._waiting[: min(ends)], ""
            return final
        held = max((_overlap(self._waiting, text) for text in self._stop), default=0)
        final, self._waiting = self._waiting[: len(self._waiting) - held], self._waiting[len(self._waiting) - held :]
        return final

    def finish(self) -> str:
        """The text that was still waiting for a stop sequence; none is coming any more."""
        final, self._waiting = self._waiting, ""
        return final


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
