"""Values of a row as text: what may be a question or an answer, and what becomes of the other fields."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time
from decimal import Decimal

from steering_pts.data.rows import Values


class RowError(ValueError):
    """What is wrong with one row, in words that follow its number."""


def text_of(values: Values, name: str) -> str:
    """A field that must be text or a number, as text: `18` and `"18"` are the same.

    Raises:
        RowError: it is missing, empty, no text, or no number.
    """
    match values.get(name):
        case None:
            raise RowError(f"no field {name!r}")
        case str(text) if not text.strip():
            raise RowError(f"field {name!r} is empty")
        case str(text) if not is_encodable(text):
            raise RowError(f"field {name!r} holds half of a surrogate pair, which is no character")
        case str() | int() | float() | Decimal() as value if not _is_odd_number(value):
            return str(value)
        case value:
            kind = type(value).__name__
            raise RowError(f"field {name!r} must be text or a number, not {kind} {value!r:.40}")


def nested_of(values: Values, name: str) -> object:
    """A field that must be a list or an object, also where the format could only hold it as JSON text.

    Raises:
        RowError: it is neither.
    """
    value = values.get(name)
    if value is None:
        raise RowError(f"no field {name!r}")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"field {name!r} must be JSON ({error})") from None
    if not isinstance(value, list | dict):
        raise RowError(
            f"field {name!r} must be a list or an object, not {type(value).__name__} {value!r:.40}"
        )
    return value


def as_text(value: object) -> str:
    """Any value as text that can be stored: what is no text itself as JSON, binary data by its length alone."""
    match value:
        case str() if is_encodable(value):
            return value
        case Decimal():
            return str(value)
        case date() | datetime() | time():
            return value.isoformat()
        case bytes():
            return _plain(value)
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return text if is_encodable(text) else json.dumps(value, default=_plain)


def as_json(value: object) -> object:
    """Any value as one that JSON has: no number that is none, and text for what has no other form."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(name): as_json(item) for name, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case _:
            return as_text(value)


def is_encodable(text: str) -> bool:
    """Whether it can be written as UTF-8, which half of a surrogate pair can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _is_odd_number(value: object) -> bool:
    """Whether it is a bool (which is an int to Python), an infinity or a NaN."""
    match value:
        case bool():
            return True
        case float():
            return not math.isfinite(value)
        case Decimal():
            return not value.is_finite()
        case _:
            return False
