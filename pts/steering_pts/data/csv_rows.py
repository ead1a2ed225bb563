"""Rows of CSV (RFC 4180): a header, then one record for each row, quoted where need be."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from steering_pts.data.files import open_text
from steering_pts.data.rows import Row
from steering_pts.data.values import is_encodable
from steering_pts.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS: Final = (",", ";", "\t")
_LARGEST_FIELD: Final = 2**31 - 1  # the library's own limit, 128 KiB, is less than a long passage


def csv_rows(path: Path) -> Generator[Row]:
    """The rows of a CSV file by its header; every value is text, and blank lines are no rows.

    The delimiter is the one of comma, semicolon and tab that cuts the header into the most names.
    A column without a name (an index, say) is called `column N`.

    Raises:
        DataError: it can't be read, or its header can't be one.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    with open_text(path) as file:
        # What is not UTF-8 becomes lone surrogates, so that the row that holds it can be named.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            first = text.readline()
            if first.lstrip().startswith(("{", "[{")):
                raise DataError(str(path), ["it is JSON; name it .jsonl or .json, or pass --format"])
            reader = csv.reader(itertools.chain([first], text), delimiter=_delimiter(first), strict=True)
            yield from _records(path, reader)
        finally:
            text.detach()


def _records(path: Path, reader: Reader) -> Generator[Row]:
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise DataError(str(path), [f"line {number}: the header is not CSV ({error})"]) from None
            yield Row(number, {}, f"not CSV ({error})")
            continue
        if len(cells) <= 1 and not "".join(cells).strip():
            continue
        if header is None:
            header = _header(path, number, cells)
        else:
            yield _row(number, header, cells)


def _delimiter(line: str) -> str:
    def names(delimiter: str) -> int:
        return len(next(csv.reader([line], delimiter=delimiter), ()))

    return max(DELIMITERS, key=names)


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() or f"column {index}" for index, cell in enumerate(cells, start=1)]
    problems = [
        f"line {number}: the header names {name!r} {count} times"
        for name, count in Counter(names).items()
        if count > 1
    ]
    if not all(map(is_encodable, names)):
        problems.append(f"line {number}: the header is not UTF-8")
    if problems:
        raise DataError(str(path), problems)
    return names


def _row(number: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(number, {}, f"{len(cells)} values where the header names {len(header)}")
    values = dict(zip(header, cells, strict=True))
    if bad := [name for name, cell in values.items() if not is_encodable(cell)]:
        return Row(number, {}, f"not UTF-8 (field {bad[0]!r})")
    return Row(number, values)
