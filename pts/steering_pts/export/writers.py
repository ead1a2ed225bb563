"""Writing a table: as lines of JSON or CSV, and as Parquet."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from steering_pts.export.columns import Cell, RowTable, required_type
from steering_pts.ledger.export import replacing

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
_ROWS_AT_ONCE: Final = 1000


def lines_of(table: RowTable, format: Literal["jsonl", "csv"]) -> Iterator[str]:
    """The table as lines of text, without their ends; CSV begins with its header."""
    return _json_lines(table) if format == "jsonl" else _csv_lines(table)


def write_parquet(table: RowTable, path: Path) -> None:
    """Writes the table to a Parquet file that is complete or not there, a thousand rows at a time.

    Raises:
        LedgerError: it can't be written; nothing is left behind.
    """
    # Takes a part of a second; text needs nothing of it.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = pa.schema([(column.name, _arrow_type(column.type)) for column in table.columns])
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while rows := list(islice(table.rows, _ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _json_lines(table: RowTable) -> Iterator[str]:
    for row in table.rows:
        yield json.dumps(row, ensure_ascii=False, allow_nan=False)


class _Echo:
    """A file that hands back what is written to it: `writerow` returns what `write` does."""

    def write(self, text: str) -> str:
        return text


def _csv_lines(table: RowTable) -> Iterator[str]:
    # The csv module says that `writerow` gives back what the file's `write` does; its type says nothing of it. With
    # another line end than this one it would not quote both \r and \n.
    line: Callable[[list[Cell]], Any] = csv.writer(_Echo(), lineterminator="\r\n").writerow
    yield str(line([column.name for column in table.columns])).removesuffix("\r\n")
    for row in table.rows:
        yield str(line([_csv_cell(row[column.name]) for column in table.columns])).removesuffix("\r\n")


def _csv_cell(cell: Cell) -> Cell:
    return (
        json.dumps(cell, ensure_ascii=False, allow_nan=False)
        if isinstance(cell, list | dict | bool)
        else cell
    )


def _arrow_type(hint: Any) -> Any:
    """The Arrow type of a Python type.

    Raises:
        TypeError: it has none.
    """
    import pyarrow as pa  # noqa: PLC0415

    hint = required_type(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    simple = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if hint in simple:
        return simple[hint]
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        return pa.string()
    if origin is tuple and len({item for item in arguments if item is not ...}) == 1:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return pa.map_(_arrow_type(arguments[0]), _arrow_type(arguments[1]))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return pa.struct([(field.name, _arrow_type(hints[field.name])) for field in dataclasses.fields(hint)])
    raise TypeError(f"{hint} has no form in a Parquet file")
