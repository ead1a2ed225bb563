"""Rows of a data set, before anything is made of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """A row, or what is wrong with it; `number` counts from 1: its first line, or the row itself."""

    number: int
    values: Values
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a source, read while they are iterated over, once.

    Attributes:
        rows: The rows; iterating raises DataError where the source as a whole can't be read.
        noun: What a row's number counts.
        wanted: What the source must hold, for the message that it is empty.
        header: Where the names of columns must stand, for the message that they are not the right ones.
        is_uniform: Whether every row has the same columns.
        may_stop: Whether rows behind a limit may be left unread, because they would have to be fetched.
    """

    rows: Generator[Row]
    noun: Literal["line", "row"]
    wanted: str
    header: str | None = None
    is_uniform: bool = False
    may_stop: bool = False
