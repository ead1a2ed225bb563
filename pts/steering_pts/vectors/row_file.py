"""A safetensors file that is written row by row, and goes on where a kill left it.

All sizes are known before, so the header comes first and every row is written to its place in one file of its final
size: nothing is collected in memory, and no parts have to be joined at the end. A journal beside it has one byte for
every batch whose rows are on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

Entry = tuple[str, list[int], int]
"""A tensor's type as the format calls it, its shape, and its bytes."""


def layout(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors header, where each tensor begins in the file, and the file's size.

    The format: the header's length as 8 bytes, little-endian; the header as JSON; the tensors without gaps, their
    offsets counted from the header's end (https://github.com/huggingface/safetensors, "Format").
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    end = 0
    for name, (dtype, shape, size) in entries.items():
        starts[name] = end
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


class RowFile:
    """A file of known size that is filled in any order, with a journal of what is in it."""

    def __init__(self, path: Path, header: bytes, size: int) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._journal = path.with_name(f".{path.name}.journal")
        self._header = header
        self._size = size

    def is_finished(self) -> bool:
        """Whether the file is there, with this header."""
        return self._is_ours(self._path)

    def begin(self) -> int:
        """Makes the unfinished file, or goes on with one of the same header; says how many batches it holds."""
        if self._is_ours(self._partial) and self._journal.exists():
            return self._journal.stat().st_size
        self._journal.unlink(missing_ok=True)
        with self._partial.open("wb") as file:
            # What does not fit on the disk is known now, and not after hours.
            os.posix_fallocate(file.fileno(), 0, self._size)
            file.write(self._header)
            file.flush()
            os.fsync(file.fileno())
        self._journal.touch()
        return 0

    def write(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Writes a batch's rows, and then, when they are on the disk, the journal's byte for it."""
        descriptor = os.open(self._partial, os.O_WRONLY)
        try:
            for offset, data in rows:
                os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with self._journal.open("ab") as journal:
            journal.write(b".")

    def finish(self) -> None:
        """The unfinished file takes its place."""
        if not self.is_finished():
            self._partial.replace(self._path)
        self._partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _is_ours(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return path.stat().st_size == self._size and file.read(len(self._header)) == self._header
        except FileNotFoundError:
            return False
