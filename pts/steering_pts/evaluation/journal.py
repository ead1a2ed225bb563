"""A file that only grows: results by key, one JSON object on each line, kept as they come."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from steering_pts.closing import Closing
from steering_pts.errors import EvaluationError
from steering_pts.ledger.lock import WriterLock


def key_of(*parts: object) -> str:
    """The key of a result: a digest of everything that decides it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


class Journal(Closing):
    """Results by key. What was put into it is there again after any end of the process, `kill -9` included.

    A result is known by what it was made from, so a command that asks for more finds what it has in common with the
    commands before it. A last line that is not whole is what a kill leaves; it is taken off.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file, or makes it.

        Raises:
            EvaluationError: It can't be read or written, or a line of it is damaged.
            LedgerLockedError: Another process is writing to it.
        """
        self._path = path
        self._values: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"{path.parent} can't be made: {error.strerror}") from error
        self._lock = WriterLock(path)
        try:
            self._file: BinaryIO = path.open("a+b")
            self._read()
        except OSError as error:
            self._lock.release()
            raise EvaluationError(f"{path} can't be read and written: {error.strerror}") from error
        except BaseException:
            self._lock.release()
            raise

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """What was put under a key; None where nothing was."""
        return self._values.get(key)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keeps a result.

        Raises:
            EvaluationError: It can't be written (a full disk).
        """
        line = json.dumps({"key": key, **value}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            # A text may hold half of a surrogate pair, which is no UTF-8; JSON has an escape for it.
            data = line.encode()
        except UnicodeEncodeError:
            data = (json.dumps({"key": key, **value}, allow_nan=False) + "\n").encode()
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise EvaluationError(f"{self._path} can't be written: {error.strerror}") from error
        self._values[key] = value

    def close(self) -> None:
        """Writes everything to the disk, and lets others write."""
        with suppress(OSError):  # what could not be written has been told already
            if not self._file.closed:
                os.fsync(self._file.fileno())
            self._file.close()
        self._lock.release()

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                break
            whole += len(line)
            try:
                value = json.loads(line)
                self._values[value.pop("key")] = value
            except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
                self._file.close()
                raise EvaluationError(
                    f"{self._path} is damaged: line {number} is not a whole result; remove the file to begin anew"
                ) from None


def remove(path: Path) -> None:
    """Removes a journal's file, so that everything is made anew.

    Raises:
        LedgerLockedError: Another process is writing to it.
    """
    if not path.exists():
        return
    lock = WriterLock(path)
    try:
        path.unlink(missing_ok=True)
    finally:
        lock.release()
