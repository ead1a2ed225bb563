"""What a source is, and the rows that it holds."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from steering_pts.data.arrow_rows import parquet_rows
from steering_pts.data.csv_rows import csv_rows
from steering_pts.data.hub import folder_rows, hub_rows, is_hub_id
from steering_pts.data.json_rows import json_lines, json_list
from steering_pts.data.rows import Row, Rows
from steering_pts.demo import data_path
from steering_pts.errors import DataError

Format = Literal["jsonl", "json", "csv", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
SUFFIXES: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_READERS: Final[Mapping[Format, Callable[[Path], Generator[Row]]]] = {
    "jsonl": json_lines,
    "json": json_list,
    "csv": csv_rows,
    "parquet": parquet_rows,
}
_WANTED: Final[Mapping[Format, str]] = {
    "jsonl": "it must hold one JSON object on each line",
    "json": "it must hold a list of JSON objects",
    "csv": "it must hold a header and at least one row",
    "parquet": "it must hold at least one row",
}


def open_rows(source: str, format: Format | None, split: str, limit: int | None) -> Rows:
    """The rows of a source, read when they are iterated over.

    Args:
        source: a file, a folder, `demo:SPLIT`, or a data set of the Hub (`hf:` before it says so
            where a file or folder has that name too).
        format: of a file; None for what its name says.
        split: of a folder or of a data set of the Hub.
        limit: how many rows are needed at least, None if all: of the Hub, no more are fetched.

    Raises:
        DataError: there is no such demo split, or a file's name does not say its format.
    """
    kind, _, rest = source.partition(":")
    if kind == "demo":
        try:
            return file_rows(data_path(rest), "jsonl")
        except ValueError as error:
            raise DataError(source, [str(error)]) from None
    if kind == "hf":
        return hub_rows(rest, split, limit)
    path = Path(source)
    by_name = format_of(path)
    mode = _mode(path)
    if mode is None and format is None and by_name is None and is_hub_id(source):
        return hub_rows(source, split, limit)
    if mode is not None and stat.S_ISDIR(mode):
        return folder_rows(path, split)
    chosen = format or by_name
    if chosen is None and mode is not None:
        suffixes = ", ".join(SUFFIXES)
        raise DataError(
            source,
            [f"its name ends in none of {suffixes} (or one of them and .gz); name the format with --format"],
        )
    return file_rows(path, chosen or "jsonl")


def format_of(path: Path) -> Format | None:
    """The format that a file's name says, with or without `.gz` behind it; None if it says none."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def _mode(path: Path) -> int | None:
    """The mode of a file or folder; None where there is none, or where reading it will say why it can't be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return None


def file_rows(path: Path, format: Format) -> Rows:
    """The rows of a file, read when they are iterated over."""
    return Rows(
        _READERS[format](path),
        noun="row" if format == "parquet" else "line",
        wanted=_WANTED[format],
        header="the first line of a CSV file must name its columns" if format == "csv" else None,
        is_uniform=format in {"csv", "parquet"},
    )
