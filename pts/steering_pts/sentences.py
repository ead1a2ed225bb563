"""Where the sentences of a completion begin and end, in tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]

_CLOSING: Final = "\"'\u201d\u2019)]*_`\uff09\u300d\u300f\u3011\u300b\u3009\u3015\uff3d"
_WIDE_ENDS: Final = "\u3002\uff01\uff1f\uff61"
"""Full-width full stop, exclamation and question mark, half-width full stop: no white space follows them."""
_ENDS: Final = r".!?\u061f\u06d4\u0964\u0965\u1362"
"""With those of Arabic, Urdu, Hindi and Amharic."""
_SPACED_END: Final = re.compile(rf"[{_ENDS}][{re.escape(_CLOSING)}]*\s*$")
_WIDE_END: Final = re.compile(rf"[{_WIDE_ENDS}][{re.escape(_CLOSING)}]*\s*$")
_NUMBER: Final = re.compile(r"[\s#>*_\-(\[]*\d+(?:\.\d+)*\.[*_)\]]*\s*")
_UNFINISHED: Final = "\ufffd"
_MOST_BYTES: Final = 4


def sentence_spans(ids: Sequence[int], decode: Decode) -> tuple[tuple[int, int], ...]:
    """The sentences of a completion as spans `[start, end)` of its tokens, in order and without gaps.

    A sentence ends with a full stop, exclamation or question mark (and what closes quotes or brackets behind it) that
    white space follows, which a full-width one (Chinese, Japanese) does not need; or with a line. The number of an item
    in a list ("1.") is no sentence, and begins the one after it. Tokens without text, such as the end-of-sequence
    token, and white space alone belong to the sentence before them.

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
        # White space alone still belongs to what it follows.
        if sentence.strip() and rest.strip() and _begins_sentence(sentence, rest):
            starts.append(index + 1)
            sentence = ""
    return tuple(zip(starts, [*starts[1:], len(pieces)], strict=True))


def first_sentence(ids: Sequence[int], decode: Decode) -> tuple[int, ...]:
    """The ids of the first sentence of a text."""
    spans = sentence_spans(ids, decode)
    return tuple(ids[: spans[0][1]]) if spans else ()


def _begins_sentence(sentence: str, rest: str) -> bool:
    """Whether a new sentence begins between what there is of one and the text that follows."""
    gap = sentence[len(sentence.rstrip()) :] + rest[: len(rest) - len(rest.lstrip())]
    if "\n" in gap:
        return True
    if gap and _SPACED_END.search(sentence):
        return _NUMBER.fullmatch(sentence) is None
    return _WIDE_END.search(sentence) is not None and rest.lstrip()[0] not in _WIDE_ENDS + _CLOSING


def _pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds; seen after what precedes it, for alone it may lose its leading space.

    A character whose bytes are several tokens is added by the first of them.
    """
    pieces: list[str] = []
    before: Sequence[int] = ()
    while len(pieces) < len(ids):
        start = len(pieces)
        context = decode(before)
        texts: list[str] = []
        for end in range(start + 1, min(start + _MOST_BYTES, len(ids)) + 1):
            texts.append(decode([*before, *ids[start:end]]).removeprefix(context))
            if not texts[-1].endswith(_UNFINISHED):
                break
        else:
            del texts[1:]  # the bytes are no character
        pieces += [texts[-1], *[""] * (len(texts) - 1)]
        before = ids[start : len(pieces)]
    return pieces
