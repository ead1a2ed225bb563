"""Writing a folder anew as a whole, without touching what somebody else has put there.

The folder carries a list of the files that were written, with their digests. One that holds anything else, or a file
that was changed since, is never written anew: a card that somebody has written would be lost, and a file that somebody
has put there would be uploaded.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from steering_pts.errors import InteropError

MANIFEST: Final = ".pts-push.json"
"""The list of the files that a push has written; it is not uploaded."""
_SCHEMA: Final = "steering.push/1"


@contextmanager
def replacing_folder(path: Path, sources: Sequence[Path]) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of another when the block ends without an error.

    It is made beside the other, which stays as it was whenever something goes wrong.

    Args:
        path: The folder; there may be none yet, an empty one, or one that was written so.
        sources: Files and folders that are read meanwhile, or that are the user's own work.

    Raises:
        InteropError: It lies in a source or a source in it, it holds what was not written so, or it can't be written.
    """
    target = path.resolve()
    _check_apart(path, target, sources)
    _check_own(path, target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        missing = [folder for folder in target.parents if not folder.exists()]
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InteropError(str(path), [f"this folder can't be made: {error.strerror}"]) from error
    try:
        yield temporary
        files = {file.relative_to(temporary).as_posix(): _digest(file) for file in _files(temporary)}
        manifest = {"schema": _SCHEMA, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _check_own(path, target)  # writing takes a while
        _swap(temporary, target)
    except OSError as error:
        raise InteropError(str(path), [f"it can't be written: {error.strerror or error}"]) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # the first that holds something, as it does when all went well, ends it
            for folder in missing:
                folder.rmdir()


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = target.with_name(f"{new.name}.old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    with suppress(OSError):  # the new folder is there; what is left of the old one has a name of its own
        shutil.rmtree(old)


def _check_apart(path: Path, target: Path, sources: Sequence[Path]) -> None:
    for source in sources:
        own = source.resolve()
        if own.is_relative_to(target) or (own.is_dir() and target.is_relative_to(own)):
            raise InteropError(
                str(path), [f"it overlaps {source}, which is read; name a folder that lies apart with --out"]
            )


def _check_own(path: Path, target: Path) -> None:
    """Refuses a folder that holds anything but unchanged files of an earlier push."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InteropError(str(path), ["it is no folder; name another one with --out"])
    try:
        listed = _listed(target / MANIFEST)
        for file in _files(target):
            name = file.relative_to(target).as_posix()
            if name not in listed:
                raise InteropError(
                    str(path),
                    [
                        f"it holds {name!r:.80}, which `pts push` did not write; name another folder with --out"
                    ],
                )
            if _digest(file) != listed[name]:
                changed = f"{name!r:.80} was changed since `pts push` wrote it"
                raise InteropError(
                    str(path), [f"{changed}; name another folder with --out, or remove the file"]
                )
    except OSError as error:
        raise InteropError(str(path), [f"it can't be read: {error.strerror or error}"]) from error


def _listed(manifest: Path) -> dict[str, str]:
    """The files that a push has written, with their digests; none where there is no list of them."""
    try:
        told = json.loads(manifest.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    match told:
        case {"schema": schema, "files": dict(files)} if schema == _SCHEMA:
            return files
    return {}


def _files(folder: Path) -> Iterator[Path]:
    """The files under a folder except the list, by name, and folders that hold nothing.

    A link counts as a file, wherever it leads.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from _files(path)
        elif path.name != MANIFEST:
            yield path


def _digest(file: Path) -> str | None:
    """SHA-256 of a file; None of what is none."""
    if file.is_symlink() or not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
