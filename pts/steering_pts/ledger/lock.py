"""One writer for a file, among all processes of the machine."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from steering_pts.errors import LedgerError, LedgerLockedError

_ATTEMPTS: Final = 200
_PAUSE_SECONDS: Final = 0.01


class WriterLock:
    """Holds `<file>.lock` until `release`, or until the process ends in whatever way.

    The lock file stays: removing it would let two processes hold locks on two files of one name.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Raises:
            LedgerLockedError: another process, or another object of this one, holds it.
            LedgerError: the lock file can't be made.
        """
        try:
            # "a+" makes the file and keeps the holder's id in it, where "w" would wipe that out.
            self._file: TextIO = path.with_name(path.name + ".lock").open("a+", encoding="ascii")
        except OSError as error:
            raise LedgerError(f"{path}: its lock file can't be made: {error.strerror}") from error
        try:
            _lock(self._file)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise LedgerLockedError(path, int(holder) if holder.isdigit() else None) from None
        except OSError as error:  # a network disk, say, that has none
            self._file.close()
            raise LedgerError(f"{path} can't be locked: {error.strerror}") from error
        with suppress(OSError):  # the id is for others to read; on a full disk the lock holds without it
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), str(os.getpid()).encode())

    def release(self) -> None:
        """Gives the lock up; a second call does nothing."""
        self._file.close()


def _lock(file: TextIO) -> None:
    """Takes the exclusive lock.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: it can't be locked.
    """
    for _ in range(_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        # A shared lock can be had beside that of `lock_holder`, which is gone in a moment, but not beside a writer's.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(_PAUSE_SECONDS)
    raise BlockingIOError


def lock_holder(path: Path) -> int | None:
    """The process that holds a file's lock, 0 where its id can't be told; None when nobody does."""
    try:
        with path.with_name(path.name + ".lock").open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read().strip()
                return int(holder) if holder.isdigit() else 0
    except OSError:  # there is no lock file, or it is not ours to read
        return None
    return None
