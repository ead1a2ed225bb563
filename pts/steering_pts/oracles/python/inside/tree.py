"""The temporary folder of a program: how much is in it, and removing it, whatever the program has made of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

_LEAST_BYTES: Final = 4096  # what the smallest file takes, its name and number included
_DEEPEST: Final = 64  # folders within each other; more are an attack on whoever has to look at them
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Gone, no folder any more, or made without permissions, so that nothing can be put into it.
_NO_FOLDER: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM})


def exceeds(folder: str, limit: int) -> bool:
    """Whether what is in the folder takes more than `limit` bytes, or is nested absurdly deep; looks until it knows.

    The program may be at work in it meanwhile. What it has taken away before it was looked at does not count, and a
    folder that it has exchanged for a link is not followed.
    """
    return _used(folder, None, limit, 0) > limit


def _used(name: str, parent: int | None, limit: int, depth: int) -> int:
    """Bytes that a folder's content takes, as soon as they are more than the limit; more than it at absurd depth."""
    if depth > _DEEPEST:
        return limit + 1
    try:
        here = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return 0
        raise
    used = 0
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    used += max(status.st_blocks * 512, _LEAST_BYTES)
                    if used <= limit and stat.S_ISDIR(status.st_mode):
                        used += _used(entry.name, here, limit - used, depth + 1)
                if used > limit:
                    break
    finally:
        os.close(here)
    return used


def remove(folder: str) -> None:
    """Removes a folder with all that is in it, read-only or nested deeper than any path can say.

    shutil.rmtree recurses, and so fails on folders nested deeper than Python's stack. Here every folder's content is
    first moved to the top. Nothing follows a link.
    """
    with contextlib.suppress(FileNotFoundError):
        top = os.open(folder, _OPEN_FOLDER)
        try:
            counter = 0
            while names := _names(top):
                for name in names:
                    counter = _remove_entry(top, name, counter)
        finally:
            os.close(top)
        Path(folder).rmdir()


def _names(descriptor: int) -> list[str]:
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in entries]


def _remove_entry(top: int, name: str, counter: int) -> int:
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return counter
    os.chmod(name, stat.S_IRWXU, dir_fd=top)
    inner = os.open(name, _OPEN_FOLDER, dir_fd=top)
    try:
        for child in _names(inner):
            if stat.S_ISDIR(os.stat(child, dir_fd=inner, follow_symlinks=False).st_mode):
                os.chmod(child, stat.S_IRWXU, dir_fd=inner)  # moving a folder rewrites its `..`
                counter = _move_up(inner, child, top, counter)
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return counter


def _move_up(inner: int, child: str, top: int, counter: int) -> int:
    while True:
        counter += 1
        try:
            os.rename(child, f"moved-{counter}", src_dir_fd=inner, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                raise  # else the program has thought of this name; the next one
        else:
            return counter
