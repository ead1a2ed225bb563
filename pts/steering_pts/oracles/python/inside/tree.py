"""The temporary folder of a program: how much is in it, and removing it, whatever the program has made of it."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

_LEAST_BYTES: Final = 4096  # what the smallest file takes, its name and number included
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def exceeds(folder: str, limit: int) -> bool:
    """Whether what is in the folder takes more than `limit` bytes; looks no further once it knows."""
    used, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    used += max(status.st_blocks * 512, _LEAST_BYTES)
                    if used > limit:
                        return True
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue  # it has gone meanwhile
        except PermissionError:
            continue  # the program has closed it to its own user; the launcher counts what was written as well
        except OSError:
            return True  # a path too long to be anything but an attack
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
            while names := os.listdir(top):
                for name in names:
                    counter = _remove_entry(top, name, counter)
        finally:
            os.close(top)
        os.rmdir(folder)


def _remove_entry(top: int, name: str, counter: int) -> int:
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return counter
    os.chmod(name, stat.S_IRWXU, dir_fd=top)
    inner = os.open(name, _OPEN_FOLDER, dir_fd=top)
    try:
        for child in os.listdir(inner):
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
        except (FileExistsError, NotADirectoryError, OSError) as error:
            if not isinstance(error, FileExistsError | NotADirectoryError) and error.errno != 39:
                raise
        else:
            return counter
