"""Texts of models and data as the page shows them: whatever is in them, it can be read and breaks nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Characters that turn the direction of a line, or of all that follows: the page isolates texts, charts can't.
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """The text without what neither HTML nor XML may hold; control characters as their pictures."""
    return _CONTROLS.sub(lambda match: _picture(match[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def label(text: str, most: int = 40) -> str:
    """The text as a short label on one line."""
    return shorten(_DIRECTIONS.sub("", clean(" ".join(text.split()))), most)


def shorten(text: str, most: int) -> str:
    """The text's beginning when it is longer than so many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def shown_token(text: str, most: int = 60) -> str:
    """A token with its white space visible."""
    visible = text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    return shorten(clean(visible), most) or "∅"


def pieces(ids: Sequence[int], cuts: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of ids, cut before the ids at some positions.

    What a token adds can't be told by decoding it alone: some tokenizers drop a space at the beginning, and a
    character may have several tokens. So beginnings of growing length are decoded, and an unfinished character belongs
    to the piece that finishes it.

    Args:
        ids: Token ids.
        cuts: Positions in ascending order, each from 0 to the number of ids.
        decode: Turns ids into text.

    Returns:
        One more piece than cuts.
    """
    whole = decode(ids)
    found = []
    done = 0
    for cut in cuts:
        length = len(decode(ids[:cut]).rstrip("\ufffd")) if cut < len(ids) else len(whole)
        length = min(max(length, done), len(whole))
        found.append(whole[done:length])
        done = length
    return [*found, whole[done:]]
