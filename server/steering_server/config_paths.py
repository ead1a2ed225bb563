"""Whether a configuration's paths lead to what they should.

Asking a path may itself fail: its folder may not be entered, or its name is longer than any file's, as a secret is that
was put where the path of its file belongs. What the system says of that names the path, so it is not passed on.
"""

from __future__ import annotations

import os
from pathlib import Path


def file_problem(path: Path) -> str:
    """What keeps a path from being a file; empty where nothing does."""
    try:
        return "" if path.is_file() else "there is no such file"
    except OSError as error:
        return f"this one can't be looked at ({_reason(error)})"


def directory_problem(path: Path) -> str:
    """What keeps the files of a directory from being listed; empty where nothing does."""
    try:
        # Else one that may not be read would count as empty.
        os.scandir(path).close()
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"can't be read ({_reason(error)})"
    return ""


def _reason(error: OSError) -> str:
    return error.strerror or "an error of input or output"
