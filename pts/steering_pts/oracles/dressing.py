r"""Takes off what only dresses an answer, and writes the same mathematics in one way.

Off: mathematics delimiters, emphasis, `\text{}` around all of it, currency, commas (or spaces) between thousands,
units, a full stop at the end. The same: `π` and `\pi`, `√2` and `\sqrt{2}`, `½` and `\frac{1}{2}`, mixed numbers,
`3 \times 10^6` and `3e6`, `negative 3` and `-3`.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Final

FRACTION: Final = r"\\[dt]?frac\s*\{-?\d+\}\s*\{-?\d+\}"
DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TIMES: Final = r"(?:\\times|\\cdot|\u00d7|\*)"
EXPONENT: Final = (
    rf"(?:[eE][-+]?\d{{1,4}}(?![\w.])|\s?{_TIMES}\s?10\s?\^\s?(?:\{{\s?-?\d{{1,4}}\s?\}}|-?\d{{1,4}}))"
)

# Every quantifier is bounded by what follows it, so no text makes these backtrack for long.
SCALES: Final = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words behind a number that belong to its value, and are no unit.
_VALUE_WORDS: Final = (
    rf"(?:pi|sqrt|root|or|and|to|times|plus|minus|over|by|squared|cubed|factorial|{'|'.join(SCALES)})\b"
)
_UNIT: Final = re.compile(
    rf"(?P<number>[-+]?(?:\d*{FRACTION}|(?:{DIGITS}){EXPONENT}?)(?:/\d+)?\\?%?)"
    r"(?:\s*(?:(?:\^\s*)?\\circ|\^\s*\{\s*\\circ\s*\}|°)\s*[CFK]?|\s*\\(?:text|mbox|mathrm|rm)\s*\{[^{}]*\}"
    rf"|\s+(?!{_VALUE_WORDS})(?:[A-Za-z]{{2,}}|[mgshlLCFKNJWV])\b[^\d=+*<>]*)"
    r"(?:\^\{?[23]\}?|(?<!\s)[23])?"
)
_SCALED: Final = re.compile(
    rf"([-+]?(?:{DIGITS}))\s+({'|'.join(SCALES)})(?:\s+[A-Za-z][^\d=+*<>]*)?", re.IGNORECASE
)
_MIXED: Final = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)/(\d+)")
_TEXT: Final = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SCIENTIFIC: Final = re.compile(
    rf"([-+]?(?:{DIGITS}))\s*{_TIMES}\s*10\s*\^\s*(?:\{{\s*)?(-?\d{{1,4}})(?:\s*\}})?"
)
_VULGAR: Final = {"\u00bd": (1, 2), "\u2153": (1, 3), "\u2154": (2, 3), "\u00bc": (1, 4), "\u00be": (3, 4)}
# `18 dollars and`, `$18 and`: what stands before cents.
_THOUSANDS: Final = r"(\d{1,3}(?:,\d{3})+|\d+)"
_MONEY: Final = rf"(?:[$€£]\s?{_THOUSANDS}|\b{_THOUSANDS}\s(?:dollars?|euros?|pounds?))(?:,?\sand|,)?\s"
# Rewritten in this order; `\\ ` in a matrix ends a row and is no space.
_REWRITTEN: Final = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r",\s*\\!\s*", ","),
        (r"(?<!\\)\\[!,]", ""),
        (r"(?<!\\)\\[; ]", " "),
        (r"\\\$", ""),
        (r"\\%", "%"),
        ("\u2212", "-"),
        (r"(^|[(\[{,=<>])\s?\u2013\s?(?=[\d.\\$])", r"\1-"),
        (r"^(?:~|\u2248|\\(?:approx|sim)\b)\s?", ""),
        (r"\s?\\(?:text|mbox|mathrm)\s?\{\s?\(?(?:in\s)?base[\s-](\d{1,2})\)?\s?\}", r"_\1"),
        (r"(?<=\d),?\s\(?(?:in\s)?base[\s-](\d{1,2})\)?$", r"_\1"),
        (r"\\varnothing\b|\u2205", r"\\emptyset"),
        (rf"{_MONEY}(\d\d)\s(?:cents?|pence)\b", r"\1\2.\3"),
        (rf"{_MONEY}(\d)\s(?:cents?|pence)\b", r"\1\2.0\3"),
        (r"(?<![\d.,/])(\d+)\sand\s(?:a|one)[\s-]half\b", r"\1.5"),
        (r"\s*\u00d7\s*", r" \\times "),
        ("\u00b7", r"\\cdot "),
        ("\u00f7", "/"),
        ("\u221e", r"\\infty "),
        ("\u03c0", r"\\pi "),
        ("\u2264", r"\\le "),
        ("\u2265", r"\\ge "),
        ("\u00b2", "^2"),
        ("\u00b3", "^3"),
        ("\u221a\\s*\\(([^()]*)\\)", r"\\sqrt{\1}"),
        ("\u221a\\s*(\\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"^(?:negative|minus)\s+(?=[\d.\\$])", "-"),
        (r"^([-+]?)\s*(?:(?:USD?\s?)?[$€£]\s*|(?:USD|EUR|GBP)\s+)?(?=[-+]?[\d.])", r"\1"),
        (r"(?<=\d)\s*[$€£]$", ""),
    )
)
_DELIMITERS: Final = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_BASED: Final = re.compile(r"([0-9A-Fa-f]*\d[0-9A-Fa-f]*)_\s?\{?\s?(\d{1,2})\s?\}?")
_TIME: Final = re.compile(
    r"(\d{1,2}):(\d\d)(?:\s?(?:\\(?:text|mbox|mathrm)\s?\{\s?)?([ap])\.?\s?m\.?\s?\}?)?", re.IGNORECASE
)
_PLAIN: Final = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4})?")


def plain_number(answer: str) -> Decimal | None:
    """The exact value of an undressed integer or decimal, `3e6` included; None for anything else."""
    return Decimal(answer) if _PLAIN.fullmatch(answer) and len(answer) <= 1000 else None


def based_number(answer: str) -> tuple[str, int | None]:
    """Of `2516_8`, the digits and the base; the base is None where the answer is not written with one."""
    match = _BASED.fullmatch(answer)
    return (match[1].upper(), int(match[2])) if match else (answer.upper(), None)


def clock_time(answer: str) -> tuple[int, int, str] | None:
    """Hours, minutes, and `a`, `p` or nothing, of `2:00 p.m.`; None for anything else."""
    match = _TIME.fullmatch(answer)
    return (int(match[1]), int(match[2]), (match[3] or "").lower()) if match else None


def exclaimed_number(answer: str) -> tuple[str, str] | None:
    """Of `5!`, the number that an excited writer means (`5`), and the factorial; None for anything else."""
    match = re.fullmatch(r"(\d{1,2})!", answer)
    return (match[1], str(math.factorial(int(match[1])))) if match else None


def scaled_number(answer: str) -> tuple[str, str] | None:
    """Of `3 million`, the number as it stands (`3`) and in full (`3000000`); None for anything else."""
    match = _SCALED.fullmatch(answer)
    if match is None:
        return None
    number = match[1].replace(",", "")
    return number, f"{Decimal(number).scaleb(SCALES[match[2].lower()]):f}"


@lru_cache(maxsize=4096)  # the rollouts of a problem give the same few answers
def undress(answer: str) -> str:
    """An answer without what dresses it."""
    while True:
        bare = _undress_once(answer)
        if bare == answer:
            return bare
        answer = bare


def _undress_once(answer: str) -> str:
    answer = _strip_delimiters(re.sub(r"\s+", " ", answer))  # short spaces keep every pattern below linear
    if text := _TEXT.fullmatch(answer):
        answer = text[1].strip()
    for pattern, plain in _REWRITTEN:
        answer = pattern.sub(plain, answer)
    for vulgar, (above, below) in _VULGAR.items():
        answer = answer.replace(vulgar, rf"\frac{{{above}}}{{{below}}}")
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", answer)
    if unit := _UNIT.fullmatch(answer):
        answer = unit["number"]
    if scientific := _SCIENTIFIC.fullmatch(answer):
        answer = f"{scientific[1]}e{scientific[2]}"
    if re.fullmatch(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?(?:e-?\d+)?%?", answer):
        answer = answer.replace(",", "").replace(" ", "")
    return re.sub(r"(?<=\d)\s+(?=%)|^\+(?=\d)|\s+(?=/)|(?<=/)\s+", "", answer).strip()


def _strip_delimiters(answer: str) -> str:
    while True:
        bare = answer.strip().rstrip(".,;:*").lstrip("*").strip()
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
