"""Values as JSON, so that a process can hand them to one that it must not be able to harm.

Plain values (numbers, text, the usual containers, dates, fractions) are copied, and what arrives is always exactly of
the built-in type: comparing it runs none of the sender's code. Anything else stays where it is; the other side gets a
handle. Where pickle would run code, JSON does not.
"""

from __future__ import annotations

import builtins
import datetime
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Final, Protocol, cast

Json = object
"""What `json` reads and writes. A list begins with the name of what it holds; there are no objects."""

_SMALL: Final = 1 << 62
_CONTAINERS: Final[dict[str, Callable[[Iterable[object]], object]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_TEXTS: Final[dict[str, tuple[type, Callable[[str], object]]]] = {
    "fraction": (Fraction, Fraction),
    "decimal": (Decimal, Decimal),
    "datetime": (datetime.datetime, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.fromisoformat),
}


class MalformedError(Exception):
    """What arrived describes no value."""


class Handles(Protocol):
    """What becomes of the values that are not copied."""

    def handle(self, value: object) -> Json:
        """Describes a value that stays here, or one that the other side owns."""

    def resolve(self, kind: str, fields: list[Json]) -> object:
        """The value that `handle` of the other side described.

        Raises:
            MalformedError: it described none.
        """


def encode(value: object, handles: Handles) -> Json:
    """The value as JSON.

    Raises:
        RecursionError: it contains itself, or is nested too deeply.
    """
    kind = type(value)
    if value is None or kind in {bool, str, float}:
        return value
    if kind is int:
        return _integer(cast("int", value))
    if kind.__name__ in _CONTAINERS and kind is _CONTAINERS[kind.__name__]:
        return [kind.__name__, *(encode(one, handles) for one in cast("Iterable[object]", value))]
    if kind is dict:
        items = cast("dict[object, object]", value).items()
        return ["dict", *(encode(part, handles) for item in items for part in item)]
    return _rarer(value, handles)


def decode(value: Json, handles: Handles) -> object:
    """The value that the JSON describes.

    Raises:
        MalformedError: it describes none.
    """
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise MalformedError("an object")
        return value
    if not value or not isinstance(value[0], str):
        raise MalformedError("a list without a name")
    kind, fields = value[0], value[1:]
    try:
        return _decode_list(kind, fields, handles)
    except (ValueError, TypeError, IndexError, OverflowError, ArithmeticError) as error:
        raise MalformedError(f"a {kind:.20} of something else") from error


def plain(value: object, handles: Handles) -> Json:
    """For an instance of a subclass of a built-in type: what it is as that type, as JSON; else None."""
    if isinstance(value, list):
        return encode([*list.__iter__(value)], handles)
    if isinstance(value, tuple):
        return encode(tuple(tuple.__iter__(value)), handles)
    if isinstance(value, dict):
        return encode(dict(dict.items(value)), handles)
    if isinstance(value, set):
        return encode(set(set.__iter__(value)), handles)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _integer(int.__int__(value))
    return float.__float__(value) if isinstance(value, float) else None


def _integer(value: int) -> Json:
    # JSON's digits take quadratic time, and Python refuses more than 4300 of them.
    return value if -_SMALL < value < _SMALL else ["int", hex(value)]


def _rarer(value: object, handles: Handles) -> Json:
    kind = type(value)
    if kind in {bytes, bytearray}:
        return [kind.__name__, cast("bytes", value).hex()]
    if kind is complex:
        number = cast("complex", value)
        return ["complex", number.real, number.imag]
    if kind is range:
        span = cast("range", value)
        return ["range", *(_integer(one) for one in (span.start, span.stop, span.step))]
    if kind is datetime.timedelta:
        difference = cast("datetime.timedelta", value)
        return ["timedelta", difference.days, difference.seconds, difference.microseconds]
    for name, (text_kind, _) in _TEXTS.items():
        if kind is text_kind:
            return [name, value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)]
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return ["class", value.__name__]
    if kind.__module__ == "collections" and isinstance(value, dict):  # Counter, OrderedDict, defaultdict
        return plain(value, handles)
    return handles.handle(value)


def _decode_list(kind: str, fields: list[Json], handles: Handles) -> object:
    if kind == "int":
        return int(_text(fields[0]), 16)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([decode(one, handles) for one in fields])
    if kind == "dict":
        parts = [decode(one, handles) for one in fields]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if kind in {"bytes", "bytearray"}:
        content = bytes.fromhex(_text(fields[0]))
        return content if kind == "bytes" else bytearray(content)
    if kind == "complex":
        return complex(_number(fields[0]), _number(fields[1]))
    if kind == "range":
        return range(*(_whole(decode(one, handles)) for one in fields))
    if kind == "timedelta":
        days, seconds, microseconds = (_whole(one) for one in fields)
        return datetime.timedelta(days, seconds, microseconds)
    if kind in _TEXTS:
        return _TEXTS[kind][1](_text(fields[0]))
    if kind == "class":
        found = vars(builtins).get(_text(fields[0]))
        if isinstance(found, type):
            return found
        raise MalformedError("a class that is not built in")
    return handles.resolve(kind, fields)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MalformedError("no text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise MalformedError("no whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise MalformedError("no number")
    return value
