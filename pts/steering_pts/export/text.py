"""Text beside token ids, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import get_args, get_origin

from steering_pts.export.columns import Cell, Column, Row, RowTable, required_type

Decode = Callable[[Sequence[int]], str]


def with_text(table: RowTable, decode: Decode) -> RowTable:
    """A table with a column of text right after each one of token ids.

    `ids` is followed by `text`, `prompt_ids` by `prompt`, and `token_id` by `token`.
    """
    names = {column.name: name for column in table.columns if (name := _text_name(column)) is not None}
    columns: list[Column] = []
    for column in table.columns:
        columns.append(column)
        if name := names.get(column.name):
            columns.append(Column(name, str | None))
    return RowTable(tuple(columns), _rows(table, names, decode))


def _rows(table: RowTable, names: dict[str, str], decode: Decode) -> Generator[Row]:
    for row in table.rows:
        wide: Row = {}
        for name, cell in row.items():
            wide[name] = cell
            if name in names:
                wide[names[name]] = _decoded(cell, decode)
        yield wide


def _decoded(cell: Cell, decode: Decode) -> str | None:
    match cell:
        case int():
            return decode([cell])
        case list():
            return decode([item for item in cell if isinstance(item, int)])
        case _:
            return None


def _text_name(column: Column) -> str | None:
    """The name of the text of a column; None where it holds no token ids."""
    hint = required_type(column.type)
    if hint is int and column.name.endswith("_id"):
        return column.name.removesuffix("_id")
    if get_origin(hint) is tuple and get_args(hint)[0] is int and column.name.split("_")[-1] == "ids":
        return column.name.removesuffix("ids").removesuffix("_") or "text"
    return None
