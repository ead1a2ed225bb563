"""Which rows of a data set are used: conditions on their fields, and lists of problem ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, Self

from steering_pts.data.rows import Values
from steering_pts.data.values import as_text
from steering_pts.errors import DataError

_CONDITION: Final = re.compile(r"(?P<field>.+?)(?P<operator>!=|<=|>=|=|~|<|>)(?P<value>.*)", re.DOTALL)
_NUMBER: Final = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_ID: Final = re.compile(r"[0-9a-f]{16}")
_ORDER: Final[Mapping[str, Callable[[Decimal, Decimal], bool]]] = {
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one field: `FIELD=VALUE`, `!=`, `~` (a regular expression found in it), `<`, `<=`, `>`, `>=`.

    `=` and `!=` compare as numbers where both sides are (`18` is `18.0`), else as text, in which
    the case of `true` and `false` does not count; a nested field is its JSON text. No condition
    holds for a row without the field, nor an order for a value that is no number.
    """

    field: str
    operator: str
    value: str

    def __post_init__(self) -> None:
        if self.operator == "~":
            try:
                re.compile(self.value)
            except re.error as error:
                raise ValueError(f"{self.value!r} is no regular expression ({error})") from None
        elif self.operator in _ORDER:
            if _number(self.value) is None:
                raise ValueError(f"{self.operator} needs a number, not {self.value!r}")
        elif self.operator not in {"=", "!="}:
            raise ValueError(f"unknown operator {self.operator!r}; expected =, !=, ~, {', '.join(_ORDER)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A condition as it is written on a command line.

        Raises:
            ValueError: it is none.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ValueError(
                "expected FIELD=VALUE, FIELD!=VALUE, FIELD~REGEX, or FIELD<=NUMBER with <, <=, >, >="
            )
        return cls(match["field"].strip(), match["operator"], match["value"].strip())

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{self.value}"

    def holds(self, row: Values) -> bool:
        """Whether a row satisfies it."""
        value = row.get(self.field)
        if value is None:
            return False
        text = as_text(value)
        if self.operator == "~":
            return re.search(self.value, text) is not None
        left, right = _number(text), _number(self.value)
        if order := _ORDER.get(self.operator):
            return left is not None and right is not None and order(left, right)
        equal = _same_text(text, self.value) if left is None or right is None else left == right
        return equal == (self.operator == "=")


def parse_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Conditions as they are written on a command line; all must hold.

    Raises:
        DataError: some are none; `.problems` lists them.
    """
    conditions: list[Condition] = []
    problems: list[str] = []
    for text in texts:
        try:
            conditions.append(Condition.parse(text))
        except ValueError as error:
            problems.append(f"{text!r}: {error}")
    if problems:
        raise DataError("--where", problems)
    return tuple(conditions)


def read_ids(path: Path) -> frozenset[str]:
    """The problem ids in a file, one on each line; blank lines do not count.

    Raises:
        DataError: it can't be read, holds none, or holds something else; `.problems` lists every line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise DataError(str(path), [f"it can't be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise DataError(str(path), [f"it is not UTF-8 (byte {error.start + 1})"]) from None
    ids = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    bad = [
        f"line {number}: {line!r:.40} is no problem id (16 hexadecimal digits)"
        for number, line in ids.items()
        if not _ID.fullmatch(line)
    ]
    if bad or not ids:
        raise DataError(str(path), bad or ["it is empty; it must hold one problem id on each line"])
    return frozenset(ids.values())


def _same_text(left: str, right: str) -> bool:
    folded = left.casefold()
    return left == right or (folded in {"true", "false"} and folded == right.casefold())


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) and len(text) <= 1000 else None
