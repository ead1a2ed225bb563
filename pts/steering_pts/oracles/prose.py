r"""Which number the words behind `the answer is` give.

1. What is rejected does not count: `5, not 6` gives 5.
2. What stands before `because`, `per`, `which`, ... counts if it gives a number, and so does what stands before one
   phrase with a preposition: `18 dollars per 2 days` gives 18, `$64 for 16 glasses` 64.
3. Else the parts between `so`, `therefore`, `which is`, a colon, ... are read on their own: `3 less than 20, so 17`
   gives 17. Parts that give different numbers decide nothing.
4. A part gives what follows its last equals sign, or the one number that it holds. With several numbers, with an
   operator beside the number, or with a word that changes its value, it gives none: `18 out of 20`,
   `2 hours and 30 minutes`, `half of 10`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import islice
from typing import Final

from steering_pts.oracles.dressing import DIGITS, EXPONENT, FRACTION, SCALES, undress

# An en dash is a minus only where a number follows directly; elsewhere it is a dash.
_SIGN: Final = r"(?:(?<![\w.)}\]])(?:[-\u2212+]\s?|\u2013(?=[\d.$€£\\])))?"
LONGEST: Final = 500  # characters of a sentence that is read
# Every quantifier is bounded by what follows it, so no text makes these backtrack for long.
NUMBER: Final = re.compile(
    rf"{_SIGN}[$€£]?(?:{FRACTION}|(?:{DIGITS})(?:{EXPONENT}|\s?/\s?\d+)?(?:\s?\\?%)?)"
    rf"(?:\s(?:{'|'.join(SCALES)})\b)?"
)
_NAMES: Final = (
    r"(?:sin|cos|tan|sec|csc|cot|arc\w+|log|ln|exp|sqrt|root|pi|mod|gcd|lcm|min|max|det|infinity|infty|"
    r"and|or|to|in|over|times|plus|minus)\b"
)
_WORD: Final = re.compile(rf"(?<![\\A-Za-z\d])(?!{_NAMES})[A-Za-z]{{2,}}", re.IGNORECASE)
_REJECTED: Final = re.compile(
    rf",?\s?\b(?:(?:and|but)\s+)?(?:not|rather\s+than|instead\s+of)\s+(?:(?:an?|the)\s+)?{NUMBER.pattern}",
    re.IGNORECASE,
)
_ASIDE: Final = re.compile(
    r",?\s?\b(?:per|because|since|when|where|given|assuming|which|(?P<place>for|from|in|at|after|during))\b|"
    r",\s*(?:as|if)\b",
    re.IGNORECASE,
)
_MORE: Final = re.compile(r"[,;:=]|\b(?:and|or|but|then|so|plus|which)\b", re.IGNORECASE)
_UNIT: Final = re.compile(r"[A-Za-z]{2}|[$€£]")
_CONCLUSION: Final = re.compile(
    r"\b(?:so|therefore|thus|hence|i\.e\.|that\s+is|making|giving|meaning|"
    r"which\s+(?:is|means|equals|makes|gives))\b|:(?=\s)|\u2192|=>|\\(?:implies|Rightarrow)",
    re.IGNORECASE,
)
_EQUALS: Final = re.compile(r"(?<![<>!=])=(?![=>])")
_AND_OR: Final = re.compile(r"\b(?:and|or)\b", re.IGNORECASE)
_NEGATIVE: Final = re.compile(r"\b(?:negative)\s(?=[\d.$])", re.IGNORECASE)
_COUNTED: Final = re.compile(
    r"\b(?:one(?=\s+(?:in|of|out)\b)|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b",
    re.IGNORECASE,
)
_COUNTS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_MONTH: Final = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_CHANGING: Final = re.compile(
    r"\b(?i:half|twice|double|triple|thirds?|quarters?|squared|cubed|factorial|plus|minus|divided|multiplied)\b|"
    rf"{_MONTH}\s\d|\d(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH}"
)
_OPERATOR_BEFORE: Final = re.compile(r"(?:[+*/^\u00d7\u00f7]\s*|[\w)]\s*-\s*|[A-Za-z_\\])$")
_OPERATOR_AFTER: Final = re.compile(
    r"\s*(?:[+*/^\u00d7\u00f7!]|-\s*[\d(]|\\(?!text|mathrm|mbox))|(?![mgshlLCFKNJWV])[A-Za-z](?![A-Za-z])|:\d"
)


def is_prose(text: str) -> bool:
    """Whether a text has words that are no names of mathematics."""
    return _WORD.search(text) is not None


def stated_number(sentence: str) -> str | None:
    """The number, undressed, that a sentence gives; None where it gives none or does not decide."""
    sentence = " ".join(sentence.split())
    if len(sentence) > LONGEST:
        return None
    sentence = _REJECTED.sub("", sentence)
    for aside in islice(_ASIDE.finditer(sentence), 8):
        before, behind = sentence[: aside.start()], sentence[aside.end() :]
        if aside["place"] and (_MORE.search(behind) or not _UNIT.search(before)):
            continue
        if number := _concluded(before):
            return number
    return _concluded(sentence)


def are_several_equations(sentence: str) -> bool:
    """Whether `and` or `or` joins equations: `x = 5 or x = 6`."""
    return any(_AND_OR.search(side) for side in _EQUALS.split(sentence)[1:-1])


def _concluded(sentence: str) -> str | None:
    if are_several_equations(sentence):
        return None
    numbers = [number for part in _CONCLUSION.split(sentence) if (number := _number_of_part(part))]
    return numbers[0] if len({_value(number) for number in numbers}) == 1 else None


def _number_of_part(part: str) -> str | None:
    part = _NEGATIVE.sub("-", undress(_EQUALS.split(part)[-1]))
    if _CHANGING.search(part):
        return None
    found: dict[Fraction | str, str] = {}
    for match in NUMBER.finditer(part):
        before = part[max(match.start() - 8, 0) : match.start()]
        if _is_operand(match.group(), before) or _OPERATOR_AFTER.match(part, match.end()):
            return None
        number = undress(match.group())
        found.setdefault(_value(number), number)
    for match in _COUNTED.finditer(part):
        number = str(_COUNTS.index(match.group().lower()))
        found.setdefault(_value(number), number)
    return next(iter(found.values())) if len(found) == 1 and NUMBER.search(part) else None


def _is_operand(number: str, before: str) -> bool:
    """Whether a number is only an operand of what stands before it."""
    signed = re.match(r"[-+\u2212]\s", number) is not None and before.strip() != ""
    return signed or _OPERATOR_BEFORE.search(before) is not None


def _value(number: str) -> Fraction | str:
    """What tells two numbers apart; a form that is not read here is its own value."""
    plain = re.sub(r"^(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", number)
    try:
        return Fraction(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return number
