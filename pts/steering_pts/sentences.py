"""Where the sentences of a completion begin and end, in tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]

_ENDS: Final = re.compile(r"""[.!?]["'\u201d\u2019)\]*_`]*\s*$""")


def sentence_spans(ids: Sequence[int], decode: Decode) -> tuple[tuple[int, int], ...]:
    """The sentences of a completion as spans `[start, end)` of its tokens, in order and without gaps.

    A sentence ends with a full stop, exclamation or question mark (and what closes quotes or brackets behind it) that
    white space follows, or with a line. Tokens without text, such as the end-of-sequence token, and white space alone
    belong to the sentence before them.

    Args:
        ids: Token ids of the completion.
        decode: Token ids to text, without special tokens.
    """
    if not ids:
        return ()
    pieces = _pieces(ids, decode)
    starts = [0]
    sentence = ""
    for index, piece in enumerate(pieces[:-1]):
        sentence += piece
        rest = pieces[index + 1]
        if not (sentence.strip() and rest.strip()):  # white space alone still belongs to what it follows
            continue
        gap = sentence[len(sentence.rstrip()) :] + rest[: len(rest) - len(rest.lstrip())]
        if "\n" in gap or (gap and _ENDS.search(sentence)):
            starts.append(index + 1)
            sentence = ""
    return tuple(zip(starts, [*starts[1:], len(pieces)], strict=True))


def first_sentence(ids: Sequence[int], decode: Decode) -> tuple[int, ...]:
    """The ids of the first sentence of a text."""
    spans = sentence_spans(ids, decode)
    return tuple(ids[: spans[0][1]]) if spans else ()


def _pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds; seen after its predecessor, for alone it may lose its leading space."""
    pieces = [decode(ids[:1])]
    for index in range(1, len(ids)):
        before = decode(ids[index - 1 : index])
        both = decode(ids[index - 1 : index + 1])
        pieces.append(both.removeprefix(before))
    return pieces
