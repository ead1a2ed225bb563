"""What SQLite raises, in words that say what can be done about it."""

from __future__ import annotations

import sqlite3
from typing import Final

# A message of SQLite's that is not UTF-8 comes as the second.
ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)

DAMAGED: Final = (
    "the file is damaged and was left as it is: put a copy of it back, save what is readable with "
    "`sqlite3 FILE .recover`, or begin another run in an empty folder"
)
_ADVICE: Final = {
    "disk is full": "make room and give the same command again: what was finished is kept",
    "malformed": DAMAGED,
    "Could not decode": DAMAGED,
    "integer overflow": DAMAGED,
    "disk I/O error": "the device has failed to read or write; nothing more was written",
    "readonly": "the file can't be written to; make it writable and give the same command again",
}


def explained(error: Exception) -> str:
    """What SQLite says, and what can be done about it."""
    if isinstance(error, UnicodeDecodeError):  # names in a damaged schema, which SQLite's message quotes
        return f"it holds text that is not UTF-8; {DAMAGED}"
    said = on_one_line(error)
    for part, advice in _ADVICE.items():
        if part in said:
            return f"{said}; {advice}"
    return said


def on_one_line(error: object) -> str:
    """What an error says; of a damaged file it may quote anything."""
    return "".join(c if c.isprintable() else " " for c in str(error))
