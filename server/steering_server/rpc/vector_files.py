"""Files of the vector directory, by the relative path that a caller names."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from steering_spec import InvalidRequestError, Violation, ViolationKind

_MAX_PATH_CHARACTERS = 1024


def find_vector_file(directory: Path | None, path: str) -> Path:
    """The file of the vector directory that a caller's path names, links followed.

    Raises:
        InvalidRequestError: There is no directory; the path leaves it, by `..`, as an absolute path or over a
            link; or it names no file.
    """
    if directory is None:
        raise _refusal(
            "this server has no vector directory; send the file itself", ViolationKind.PRECONDITION
        )
    if (
        len(path) > _MAX_PATH_CHARACTERS
    ):  # resolving goes through the parts, at a cost that grows with the square
        raise _refusal(f"{len(path)} characters; at most {_MAX_PATH_CHARACTERS} are followed")
    relative = PurePosixPath(path)
    if not path or "\0" in path or relative.is_absolute() or ".." in relative.parts:
        raise _refusal("expected a path inside the vector directory, relative to it and without `..`")
    try:
        found = (directory / relative).resolve()
        is_inside, is_file = found.is_relative_to(directory.resolve()), found.is_file()
    except (OSError, RuntimeError):  # a loop of links, a name that is too long
        raise _refusal("this path can't be followed") from None
    if not is_inside:
        raise _refusal("this path leads out of the vector directory")
    if not is_file:
        raise _refusal("there is no such file in the vector directory", ViolationKind.NOT_FOUND)
    return found


def unreadable(error: OSError) -> InvalidRequestError:
    """What to tell of a file that was found and then could not be read; nothing of where it is."""
    if isinstance(error, FileNotFoundError):  # it was deleted in between
        return _refusal("there is no such file in the vector directory", ViolationKind.NOT_FOUND)
    reason = error.strerror or "an error of input or output"
    return _refusal(f"this file can't be read: {reason}", ViolationKind.PRECONDITION)


def _refusal(description: str, kind: ViolationKind = ViolationKind.INVALID) -> InvalidRequestError:
    return InvalidRequestError([Violation("path", description, kind)])
