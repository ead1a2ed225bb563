"""Text of a completion while it grows: whole characters only, and never a part of a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_REPLACEMENT = "\ufffd"
_MAX_UNFINISHED_TOKENS = 16
_MAX_CHARACTER_TOKENS = 4  # a character has at most four bytes in UTF-8, a token at least one


class TextStream:
    """Turns token ids into text that is final.

    A byte-level token may end inside a character: the text waits until the character is whole. Text that may still
    become a stop sequence waits too, and once a stop sequence is complete, it and everything after it is dropped.

    Bytes that are no character become U+FFFD, as in any decoding; at the very end of a completion they are dropped,
    because there they can't be told from a character that is not whole. The library's `DecodeStream` is no help here:
    it raises ("Invalid prefix") when a byte-fallback tokenizer is given a byte that is no character.

    Stop sequences may count only from some token on. What is looked through is then the text that comes out with that
    token and those after it: a character belongs to the token that makes it whole, and a stop sequence that began in
    earlier text is none. Earlier text is never held back.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        """Begins a completion.

        Args:
            tokenizer: A fast tokenizer of transformers.
            stop: Texts that end the completion.
            min_tokens: Tokens before the first one whose text is looked through for them.
        """
        self._backend = tokenizer.backend_tokenizer
        self._stop = tuple(map(_StopSequence, stop))
        self._tokens_without_stop = min_tokens
        # A window of ids is decoded at each step: the context, whose text is out and which decides how the next text
        # is joined (a leading space, say), and the ids after it.
        self._window: list[int] = []
        self._context_ids = 0
        self._sent_characters = 0
        self._waiting = ""
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """Takes one token; returns the text that is now final. Sets `stopped` when a stop sequence is complete."""
        if self.stopped:
            return ""
        text = self._decode(token_id)
        if self._tokens_without_stop > 0:
            self._tokens_without_stop -= 1
            return text
        begun_before = len(self._waiting)
        self._waiting += text
        found = [at for one in self._stop if (at := one.feed(text)) is not None]
        if found:
            self.stopped = True
            final, self._waiting = self._waiting[: begun_before + min(found)], ""
            return final
        end = len(self._waiting) - max((one.matched for one in self._stop), default=0)
        final, self._waiting = self._waiting[:end], self._waiting[end:]
        return final

    def finish(self) -> str:
        """The text that was still waiting for a stop sequence; none is coming any more."""
        final, self._waiting = self._waiting, ""
        return final

    def _decode(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._text_of(self._window)
        whole = text.rstrip(_REPLACEMENT)
        new = whole[self._sent_characters :]
        self._sent_characters += len(new)
        unfinished = len(self._window) - self._context_ids
        if len(whole) == len(text) and new:
            self._begin_window(self._window[self._context_ids :])
        elif unfinished > _MAX_UNFINISHED_TOKENS:
            silent = self._silent() if len(whole) == len(text) else set()
            if silent:
                waiting = self._window[self._context_ids :]
                self._window[self._context_ids :] = [one for one in waiting if one not in silent]
                return new
            # These bytes are no character; without an end to the waiting, a run of them would cost its square.
            kept = self._window[-(_MAX_CHARACTER_TOKENS - 1) :]
            new += self._text_of(self._window[: -len(kept)])[self._sent_characters :]
            self._window, self._context_ids, self._sent_characters = kept, 0, 0
        return new

    def _silent(self) -> set[int]:
        """Ids after the context that have no text, special ones say."""
        return {one for one in self._window[self._context_ids :] if not self._text_of([one])}

    def _begin_window(self, context: list[int]) -> None:
        self._window = context
        self._context_ids = len(context)
        self._sent_characters = len(self._text_of(context))

    def _text_of(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text


class _StopSequence:
    """Looks for one stop sequence in a text that comes in pieces, each character once.

    Knuth, Morris and Pratt (1977). Were the text that waits compared with the sequence anew at each token, every
    request of the batch would wait for it.

    Attributes:
        matched: Length of the longest end of the text that is a beginning of the sequence.
    """

    def __init__(self, text: str) -> None:
        self.matched = 0
        self._text = text
        self._borders = _borders(text)

    def feed(self, piece: str) -> int | None:
        """Takes a piece of the text; where in the piece the sequence begins that it completes, if it does.

        A sequence that began in earlier pieces has a negative place. None where it completes none.
        """
        for count, character in enumerate(piece, start=1):
            self.matched = _next(self._text, self._borders, self.matched, character)
            if self.matched == len(self._text):
                return count - self.matched
        return None


@lru_cache(maxsize=256)  # the completions of a prompt have the same ones
def _borders(text: str) -> Sequence[int]:
    """At i, the length of the longest beginning of the text, but not all, that the first i + 1 characters end with."""
    borders = [0]
    for character in text[1:]:
        borders.append(_next(text, borders, borders[-1], character))
    return borders


def _next(text: str, borders: Sequence[int], length: int, character: str) -> int:
    """How much of a text's beginning is matched once a character has followed `length` characters of it."""
    while length and text[length] != character:
        length = borders[length - 1]
    return length + (text[length] == character)
