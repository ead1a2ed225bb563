"""Rows of data sets that the library `datasets` reads: those of the Hub, and folders on disk."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from steering_pts.data.arrow_rows import ROWS_AT_ONCE, table_rows
from steering_pts.data.rows import Row, Rows
from steering_pts.errors import DataError

_HUB_ID: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(?::(?P<config>[\w.-]+))?")
_SAVED_DICT, _SAVED = "dataset_dict.json", "state.json"  # what `save_to_disk` writes beside the data
_WANTED: Final = "the split must hold rows"
_STREAMED_AT_ONCE: Final = 100
_LONGEST_REASON: Final = 300


def is_hub_id(source: str) -> bool:
    """Whether a source reads as `owner/name` or `owner/name:config`."""
    return "/" in source and _HUB_ID.fullmatch(source) is not None


def hub_rows(identifier: str, split: str, limit: int | None) -> Rows:
    """The rows of a split of a data set of the Hub.

    Args:
        identifier: `owner/name` or `owner/name:config`.
        split: Which split, also a part of one such as `train[:100]`.
        limit: How many rows are needed at least; with a limit, rows are fetched as they are read
            rather than the whole data set first. None if all are needed.
    """
    rows = _hub(identifier, split, limit)
    return Rows(rows, "row", _WANTED, is_uniform=True, may_stop=limit is not None)


def folder_rows(path: Path, split: str) -> Rows:
    """The rows of a folder: one saved by `datasets.save_to_disk`, or data files that it can make splits of.

    A single data set that was saved has no splits; then `split` does not matter.
    """
    return Rows(_folder(path, split), "row", _WANTED, is_uniform=True)


def _hub(identifier: str, split: str, limit: int | None) -> Generator[Row]:
    match = _HUB_ID.fullmatch(identifier)
    if match is None:
        raise DataError(identifier, ["a Hub data set is named owner/name or owner/name:config"])
    # Takes seconds and the network's libraries; files need neither.
    import datasets  # noqa: PLC0415

    # Streaming never looks into the cache, so without a network it would refuse what is there. Parts of a split it
    # can't read.
    is_streamed = limit is not None and not datasets.config.HF_HUB_OFFLINE and "[" not in split
    try:
        data = datasets.load_dataset(match["name"], match["config"], split=split, streaming=is_streamed)
        yield from _rows_of(data, _STREAMED_AT_ONCE if is_streamed else ROWS_AT_ONCE)
    except Exception as error:  # the library raises whatever its many back ends raise
        raise DataError(identifier, [f"it can't be loaded from the Hub: {_reason(error)}"]) from error


def _folder(path: Path, split: str) -> Generator[Row]:
    try:
        entries = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise DataError(str(path), [f"it can't be read: {error.strerror}"]) from error
    import datasets  # noqa: PLC0415

    try:
        if entries & {_SAVED_DICT, _SAVED}:
            data = datasets.load_from_disk(str(path))
            if isinstance(data, dict):
                data = _split_of(path, data, split)
        else:
            # Streaming, or the library would write a copy of all of it to its cache.
            data = datasets.load_dataset(str(path), split=split, streaming=True)
        yield from _rows_of(data, ROWS_AT_ONCE)
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its many back ends raise
        raise DataError(str(path), [f"the folder can't be loaded: {_reason(error)}"]) from error


def _split_of(path: Path, splits: dict[str, Any], split: str) -> Any:
    if split not in splits:
        raise DataError(str(path), [f"no split {split!r}; pass --split with one of: {', '.join(splits)}"])
    return splits[split]


def _rows_of(data: Any, rows_at_once: int) -> Generator[Row]:
    return table_rows(data.with_format("arrow").iter(batch_size=rows_at_once))


def _reason(error: Exception) -> str:
    """The first line of what a library says, or the kind of its error where it says nothing."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.{_LONGEST_REASON}}" if lines else type(error).__name__
