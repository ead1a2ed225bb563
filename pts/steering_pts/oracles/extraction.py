r"""Finds the answer in a worked solution.

The first of these that a text has is its answer:

1. the first `#### 18` (GSM8K), to the end of the line; headings (`#### Step 1`, `#### Solution`) are none;
2. the last `\boxed{18}`, with nested braces, or `\boxed 8`;
3. the last `Answer: 18` or `the answer is 18`, to the end of the sentence (`prose` reads its words);
4. its last number, counting `\frac{1}{2}` and `1/2` as one.

GSM8K's line ends a solution: what follows is a model that goes on with a question of its own making, so the first one
counts, and once it has ended no continuation can change the answer (`is_answer_line`). Of the other kinds the last one
counts, since a solution may name intermediate results, or correct itself.

Answers are returned undressed (`dressing`).
"""

from __future__ import annotations

import re
from typing import Final

from steering_pts.oracles.dressing import plain_number, undress
from steering_pts.oracles.prose import NUMBER, are_several_equations, is_prose, stated_number

# Every quantifier is bounded by what follows it, so no text makes these backtrack for long.
_HASHES: Final = re.compile(r"#{4,}((?:(?!####)[^\n])*)")
_HEADING: Final = re.compile(
    r"(?:step|part|case|example|question|problem|section|note|method|option)\b(?!\s*=)|\d+\s*[.):]\s+[A-Za-z]{2,}|"
    r"(?:the\s+|final\s+)*(?:solutions?|answers?|explanations?|conclusions?|calculations?|reasoning|results?|steps|"
    r"summary|analysis|proof|approach|verification|check|thinking)\s*$",
    re.IGNORECASE,
)
_BRACE: Final = re.compile(r"[{}]")
_BOXED: Final = re.compile(r"\\f?box(?:ed)?\b\s*")
ANSWER_PHRASE: Final = (
    r"\banswer\b(?:\s+(?:to|for|of)\s+(?:this|that|the)\s+\w+)?[*_]*"
    r"(?:\s+(?:is|(?:would|will|should|must)\s+be)\b\s*:?|\s*[:=])[\s*_]*"
)
_PHRASE: Final = re.compile(ANSWER_PHRASE, re.IGNORECASE)
SENTENCE_END: Final = re.compile(r"\n|[.!?;](?=[*_]*(?:\s|$))")
_INLINE_MATH: Final = re.compile(r"\$([^$\s](?:[^$]*[^$\s])?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:\s+[A-Za-z]{2,}|[:,])")


def extract_answer(text: str) -> str | None:
    """The answer that a completion gives, undressed; None where it gives none."""
    marked = _marked_answer(text)
    if marked is not None:
        return marked or None
    return _last_number(text)


def gold_answer(text: str) -> str:
    """The answer in a data set's answer field: the marked one, or else all of it, undressed."""
    return _marked_answer(text) or undress(text)


def is_answer_line(line: str) -> bool:
    """Whether a whole line, `#### 18`, gives the answer of every text whose first such line it is."""
    return _hashes_answer(line) is not None


def _marked_answer(text: str) -> str | None:
    """The undressed answer behind the last marker; empty where a phrase ends the text, else None."""
    if (hashes := _hashes_answer(text)) is not None:
        return hashes
    if boxed := _boxed_answer(text):
        return undress(boxed)
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :]
    return _phrase_answer(rest) if rest else ""


def _hashes_answer(text: str) -> str | None:
    """The undressed answer on the first `####` line that has one."""
    if "####" not in text:
        return None
    for content in _HASHES.findall(text):
        answer = undress(content.rstrip(" !"))
        begins = NUMBER.match(answer)
        if answer and (begins or not _PROSE.search(answer)) and not _HEADING.match(answer):
            return (stated_number(answer) if begins and is_prose(answer) else None) or answer
    return None


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
    if (inline := _INLINE_MATH.match(rest)) and not _inline_number(inline):
        return undress(inline.group())
    end = SENTENCE_END.search(rest)
    sentence = rest[: end.start()] if end else rest
    bare = _INLINE_MATH.sub(lambda inline: _inline_number(inline) or inline.group(), sentence)
    if inline_maths := list(_INLINE_MATH.finditer(bare)):
        return undress(inline_maths[-1].group())
    answer = _sentence_answer(bare.strip())
    # `5!` that ends a sentence may be a factorial.
    exclaimed = end and end.group() == "!" and answer and answer.isdigit() and sentence.endswith(answer)
    return f"{answer}!" if exclaimed else answer


def _inline_number(inline: re.Match[str]) -> str | None:
    """The number that is all of an inline formula: in `$2$ hours and $30$ minutes` no formula is the answer."""
    content = next(filter(None, inline.groups()))
    return content if plain_number(undress(content)) is not None else None


def _sentence_answer(sentence: str) -> str | None:
    whole = undress(sentence)
    if not re.search(r"\d", whole):
        return whole if len(whole.split()) <= 3 else None
    if is_prose(whole):
        return stated_number(sentence) or whole
    return whole if are_several_equations(sentence) else undress(sentence.rpartition(" = ")[2])


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return undress(numbers[-1]) if numbers else None
