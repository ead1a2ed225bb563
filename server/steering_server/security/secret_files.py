"""Files that hold secrets: read whole, and only where they are kept as secrets should be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from steering_server.errors import StartError

_MAX_BYTES = 1 << 20


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        StartError: It can't be read, is no regular file, or is larger than any file of this kind.
    """
    return _read(path, secret=False)


def read_secret(path: Path) -> bytes:
    """The bytes of a file that holds secrets.

    Raises:
        StartError: What `read_file` refuses; or others than its owner and its group may read it, or others than its
            owner may write it.
    """
    return _read(path, secret=True)


def _read(path: Path, *, secret: bool) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of what is read, whatever is put in its place meanwhile
            if not stat.S_ISREG(status.st_mode):
                raise StartError(f"{str(path)!r} is no regular file")
            mode = stat.S_IMODE(status.st_mode)
            # A group may read it: that is how a service's account gets at files that it does not own.
            if secret and mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise StartError(
                    f"{str(path)!r} has the mode {mode:03o}: others may use the secrets in it; chmod 600 or 640"
                )
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise StartError(f"{str(path)!r} can't be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise StartError(f"{str(path)!r} is larger than {_MAX_BYTES} bytes, which none of its kind is")
    return data
