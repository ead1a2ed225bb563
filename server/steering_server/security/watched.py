"""A value that is read from files, and read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from steering_server.errors import StartError

_log = logging.getLogger(__name__)

T = TypeVar("T")
_Look = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """The newest sound value of some files. `value` may be asked from any thread, `look` from one at a time."""

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads the files for the first time.

        Args:
            what: What the log calls the value.
            files: The files whose change matters.
            read: Reads them; called again by `look`.

        Raises:
            StartError: What `read` finds wrong.
        """
        self._what = what
        self._files = files
        self._read = read
        self._taken = self._complained = self._glance()
        self.value = read()

    def look(self) -> None:
        """Reads the files again if they have changed; where they are wrong now, the value stays and the log says so.

        Files that belong together change one after the other, so wrong ones are tried again at the next look.
        """
        glance = self._glance()
        if glance == self._taken:
            return
        try:
            self.value = self._read()
        except StartError as error:
            if glance != self._complained:
                self._complained = glance
                _log.error("%s changed and can't be used, so the former are kept: %s", self._what, error)
            return
        self._taken = glance
        _log.info("%s changed and are in use", self._what)

    def _glance(self) -> _Look:
        return tuple(map(_status, self._files))


def _status(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
