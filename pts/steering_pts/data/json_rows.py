"""Rows of JSON: one object on each line, or one list of objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator
from pathlib import Path
from typing import Final

from steering_pts.data.files import BinaryFile, open_text
from steering_pts.data.rows import Row
from steering_pts.errors import DataError

_BOM: Final = b"\xef\xbb\xbf"
_LIST: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
_LIST_OF_OBJECTS: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
_SPREAD_OBJECT: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{[ \t\r]*\n")
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def json_lines(path: Path) -> Generator[Row]:
    """The rows of a file with one JSON object on each line; blank lines are none.

    Raises:
        DataError: it can't be read, or is a list of objects instead.
    """
    with open_text(path) as file:
        if _LIST_OF_OBJECTS.match(file.peek(64)):
            raise DataError(
                str(path), ["it is a list, not one object on each line; name it .json, or pass --format json"]
            )
        yield from _lines(path, file)


def json_list(path: Path) -> Generator[Row]:
    """The rows of a file with a list of JSON objects, or with one object on each line.

    A list has to be held in memory as text; its objects are parsed one by one.

    Raises:
        DataError: it can't be read, or the list is not well-formed.
    """
    with open_text(path) as file:
        if not _LIST.match(file.peek(64)):
            yield from _lines(path, file)
            return
        try:
            text = file.read().removeprefix(_BOM).decode()
        except UnicodeDecodeError as error:
            raise DataError(str(path), [f"not UTF-8 (byte {error.start + 1})"]) from None
    try:
        yield from _items(text)
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), [f"not a list of JSON objects ({error})"]) from None


def _lines(path: Path, file: BinaryFile) -> Generator[Row]:
    if _SPREAD_OBJECT.match(file.peek(64)):
        raise DataError(
            str(path),
            ["it is one object over several lines; it must hold one on each line, or a list of them"],
        )
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows in strings.
    for number, line in enumerate(file, start=1):
        content = line.removeprefix(_BOM) if number == 1 else line
        if content.strip():
            yield _parse_line(number, content.removesuffix(b"\n"))


def _parse_line(number: int, line: bytes) -> Row:
    faults: list[str] = []
    try:
        value = _decoder(faults).decode(line.decode())
    except UnicodeDecodeError as error:
        return Row(number, {}, f"not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Row(number, {}, f"not JSON ({error.msg}, column {error.colno})")
    except RecursionError as error:
        return Row(number, {}, f"not JSON ({error})")
    return Row(number, {}, faults[0]) if faults else _row(number, value)


def _items(text: str) -> Generator[Row]:
    faults: list[str] = []
    decoder = _decoder(faults)
    index = _skip(text, text.index("[") + 1)
    number, counted = 1, 0
    is_more = not text.startswith("]", index)
    while is_more:
        number += text.count("\n", counted, index)
        counted = index
        faults.clear()
        value, index = decoder.raw_decode(text, index)
        yield Row(number, {}, faults[0]) if faults else _row(number, value)
        index = _skip(text, index)
        if is_more := text.startswith(",", index):
            index = _skip(text, index + 1)
    if not text.startswith("]", index):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, index)
    if (end := _skip(text, index + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _skip(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    return index if match is None else match.end()


def _row(number: int, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(number, {}, "not a JSON object")
    return Row(number, value)


def _decoder(faults: list[str]) -> json.JSONDecoder:
    """A decoder that says in `faults` which numbers are none, or none that can be held."""

    def constant(name: str) -> None:
        faults.append(f"{name} is not a number")

    def decimal(text: str) -> float:
        if math.isinf(number := float(text)):
            faults.append(f"{text:.40} is too large for a number; write it as text")
        return number

    def integer(text: str) -> int:
        try:
            return int(text)
        except ValueError:  # Python reads no more than 4,300 digits, for that takes ever longer
            faults.append(f"a number of {len(text):,} digits is too long; write it as text")
            return 0

    return json.JSONDecoder(parse_constant=constant, parse_float=decimal, parse_int=integer)
