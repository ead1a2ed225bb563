"""Columns and rows from the fields of a record, whatever record it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_type_hints

Cell = None | bool | int | float | str | list["Cell"] | dict[str, "Cell"]
Row = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, and the Python type of its values, as a record declares it."""

    name: str
    type: Any


@dataclass(frozen=True, slots=True)
class RowTable:
    """A table that is made while it is iterated over, once; each row has all columns, in order."""

    columns: tuple[Column, ...]
    rows: Generator[Row]


def columns_of(record: Any) -> tuple[Column, ...]:
    """A column for each field of a dataclass; the fields of a dataclass inside it are columns of their own."""
    hints = get_type_hints(record)
    columns: list[Column] = []
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        columns += columns_of(hint) if dataclasses.is_dataclass(hint) else [Column(field.name, hint)]
    return tuple(columns)


def row_of(record: Any) -> Row:
    """A record as the row that `columns_of` its class describes."""
    row: Row = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        row |= row_of(value) if dataclasses.is_dataclass(value) else {field.name: _plain(value)}
    return row


def rows_of(records: Iterable[Any]) -> Generator[Row]:
    """The row of each record."""
    for record in records:
        yield row_of(record)


def nested_table(record: type, records: Iterable[Any]) -> RowTable:
    """A table with a column for each field; dataclasses inside a record stay whole, as objects in their column."""
    hints = get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    rows = ({name: _plain(getattr(one, name)) for name in names} for one in records)
    return RowTable(tuple(Column(name, hints[name]) for name in names), rows)


def optional(columns: Iterable[Column], prefix: str = "") -> tuple[Column, ...]:
    """The same columns, which may be empty now, with a prefix to their names."""
    return tuple(Column(f"{prefix}{column.name}", column.type | None) for column in columns)


def required_type(hint: Any) -> Any:
    """`T` of `T | None`; any other type as it is."""
    some = [arm for arm in get_args(hint) if arm is not NoneType]
    return some[0] if NoneType in get_args(hint) and len(some) == 1 else hint


def _plain(value: Any) -> Cell:
    match value:
        case Enum():
            return _plain(value.value)
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case tuple() | list():
            return [_plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            raise TypeError(f"a {type(value).__name__} has no form in a table")
