r"""Finds the answer in a worked solution.

The first of these that a text has, and the last of its kind, is its answer:

1. `#### 18` (GSM8K), to the end of the line;
2. `\boxed{18}`, with nested braces, or `\boxed 8`;
3. `Answer: 18` or `the answer is 18`, to the end of the sentence;
4. its last number, counting `\frac{1}{2}` and `1/2` as one.

Answers are returned without what only dresses them: mathematics delimiters, emphasis, currency,
commas between thousands, units, a full stop at the end.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_FRACTION: Final = r"\\[dt]?frac\s*\{-?\d+\}\s*\{-?\d+\}"
_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGN: Final = r"(?:(?<![\w.)}\]])[-\u2212+]\s?)?"
# Every quantifier is bounded by what follows it, so no text makes these backtrack for long.
_NUMBER: Final = re.compile(rf"{_SIGN}[$€£]?(?:{_FRACTION}|(?:{_DIGITS})(?:\s?/\s?\d+)?(?:\s?\\?%)?)")
_HASHES: Final = re.compile(r"####((?:(?!####)[^\n])*)")
_BRACE: Final = re.compile(r"[{}]")
_BOXED: Final = re.compile(r"\\f?box(?:ed)?\b\s*")
_PHRASE: Final = re.compile(
    r"\banswer\b(?:\s+(?:to|for|of)\s+(?:this|that|the)\s+\w+)?[*_]*"
    r"(?:\s+(?:is|(?:would|will|should|must)\s+be)\b\s*:?|\s*[:=])[\s*_]*",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"\n|[.!?;](?=\s|$)")
_INLINE_MATH: Final = re.compile(r"\$([^$\s](?:[^$]*[^$\s])?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:\s+[A-Za-z]{2,}|[:,])")
_UNIT: Final = re.compile(
    rf"(?P<number>[-+]?(?:\d*{_FRACTION}|{_DIGITS})(?:/\d+)?\\?%?)"
    r"(?:\s*(?:\^?\\circ|°)\s*[CFK]?|\s*\\text\s*\{[^{}]*\}|\s+(?:[A-Za-z]{2,}|[mgshlLCFKNJWV])\b[^\d=+*<>]*)"
    r"(?:\^?\{?[23]\}?)?"
)
_MIXED: Final = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)/(\d+)")
_DRESSING: Final = (
    ("\\$", ""),
    ("\\!", ""),
    ("\\,", ""),
    ("\\;", " "),
    ("\\ ", " "),
    ("\u2212", "-"),
    ("\\%", "%"),
)
_DELIMITERS: Final = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_PLAIN: Final = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")


def extract_answer(text: str) -> str | None:
    """The answer that a completion gives, undressed; None where it gives none."""
    marked = _marked_answer(text)
    if marked is not None:
        return marked or None
    return _last_number(text)


def gold_answer(text: str) -> str:
    """The answer in a data set's answer field: the marked one, or else all of it, undressed."""
    return _marked_answer(text) or undress(text)


def plain_number(answer: str) -> Decimal | None:
    """The exact value of an undressed integer or decimal; None for anything else."""
    return Decimal(answer) if _PLAIN.fullmatch(answer) and len(answer) <= 1000 else None


def undress(answer: str) -> str:
    """An answer without delimiters, emphasis, currency, thousands' commas, unit and full stop."""
    answer = _strip_delimiters(answer)
    for dressing, plain in _DRESSING:
        answer = answer.replace(dressing, plain)
    answer = re.sub(r"^([-+]?)\s*[$€£]\s*(?=[-+]?[\d.])", r"\1", answer)
    answer = re.sub(r"(?<=\d)\s*[$€£]$", "", answer)
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", answer)
    if unit := _UNIT.fullmatch(answer):
        answer = unit["number"]
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", answer):
        answer = answer.replace(",", "")
    return re.sub(r"(?<=\d)\s+(?=%)|^\+(?=\d)|\s+(?=/)|(?<=/)\s+", "", answer).strip()


def _marked_answer(text: str) -> str | None:
    """The undressed answer behind the last marker; empty where a phrase ends the text, else None."""
    for found in (_hashes_answer(text), _boxed_answer(text)):
        if found:
            return undress(found)
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :]
    return _phrase_answer(rest) if rest else ""


def _hashes_answer(text: str) -> str | None:
    found = [match.strip() for match in _HASHES.findall(text)]
    return next(filter(None, reversed(found)), None)


def _boxed_answer(text: str) -> str | None:
    closing = _closing_braces(text)
    for match in reversed(list(_BOXED.finditer(text))):
        start = match.end()
        if text[start : start + 1] != "{":
            return text[start : start + 1] or None
        if start in closing:
            return text[start + 1 : closing[start]]
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is opened is closed, in one pass over the text."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    return closing


def _phrase_answer(rest: str) -> str | None:
    if inline := _INLINE_MATH.match(rest):
        return undress(inline.group())
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip()
    if inline_maths := list(_INLINE_MATH.finditer(sentence)):
        return undress(inline_maths[-1].group())
    sentence = undress(sentence.rpartition(" = ")[2])
    if not _PROSE.search(sentence):
        return sentence if len(sentence.split()) <= 3 or re.search(r"\d", sentence) else None
    if (number := _NUMBER.match(sentence)) and not re.match(
        r"\s*[-+*/^=\u00d7\u00f7]", sentence[number.end() :]
    ):
        return undress(number.group())
    return _last_number(sentence)


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return undress(numbers[-1]) if numbers else None


def _strip_delimiters(answer: str) -> str:
    while True:
        bare = answer.strip().rstrip(".,;:!*").lstrip("*").strip()
        for opening, closing in _DELIMITERS:
            inside = bare[len(opening) : len(bare) - len(closing)]
            if (
                bare.startswith(opening)
                and bare.endswith(closing)
                and len(bare) > len(opening) + len(closing)
                and opening not in inside
            ):
                bare = inside
        if bare == answer:
            return answer
        answer = bare
