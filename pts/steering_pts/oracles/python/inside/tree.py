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


def exceeds(folder: str, limit: int) -> bool:
    """Whether what is in the folder takes more than `limit` bytes, or is nested absurdly deep; looks until it knows."""
    used, folders = 0, [(folder, 0)]
    while folders:
        here, depth = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    used += max(status.st_blocks * 512, _LEAST_BYTES)
                    if used > limit or depth > _DEEPEST:
                        return True
                    if stat.S_ISDIR(status.st_mode):
                        folders.append((entry.path, depth + 1))
        except (FileNotFoundError, PermissionError):
            continue  # it has gone meanwhile, or was made without permissions, so that nothing can be put into it
    return False


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
