"""Where everything on the page comes from: settings, digests, versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from steering_pts.ledger import JSON

_PACKAGES: Final = ("pivotal-steering", "torch", "transformers", "nnsight", "numpy", "scipy", "statsmodels")
_FILES: Final = ("pivots.jsonl", "calibration.json", "evaluation.json")
_MOST_CHARACTERS: Final = 300


def settings_by_part(settings: Mapping[str, JSON]) -> dict[str, list[tuple[str, str]]]:
    """The settings of a run under what they are about: the run, its sampler, its search, its oracle."""
    parts: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in sorted(settings.items()):
        part, _, name = key.partition(".")
        if not name:
            part, name = "run", key
        text = value if isinstance(value, str) else _text(value)
        parts.setdefault(part, []).append((name.replace("_", " "), text[:_MOST_CHARACTERS]))
    return {part: rows for part, rows in parts.items() if rows}


def _text(value: JSON) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def digests(folder: Path) -> list[tuple[str, str]]:
    """SHA-256 of the files of a run that the page rests on, as far as they are there and can be read."""
    found = []
    for name in _FILES:
        with suppress(OSError), (folder / name).open("rb") as file:
            found.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
    return found


def versions() -> list[tuple[str, str]]:
    """Versions of what wrote the page."""
    found = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:  # run from a folder that was never installed
            continue
    return found
