"""The part of admission that judges texts: what Python may hold in a string and no wire can carry."""

from __future__ import annotations

from collections.abc import Iterator

from steering_spec.violation import Violation


def unicode_violations(field: str, text: str) -> Iterator[Violation]:
    """Whether a text is Unicode: half of a surrogate pair, which Python lets stand alone, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        yield Violation(field, f"character {error.start} is half of a surrogate pair ({surrogate}), no text")
