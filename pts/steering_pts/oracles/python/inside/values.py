"""Values as JSON, so that a process can hand them to one that it must not be able to harm.

Plain values (numbers, text, the usual containers, dates, fractions) are copied, and what arrives is always exactly of
the built-in type: comparing it runs none of the sender's code. Anything else stays where it is; the other side gets a
handle. Where pickle would run code, JSON does not.
"""

from __future__ import annotations

import builtins
import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Protocol, cast

Json = object
"""What `json` reads and writes. A list begins with the name of what it holds; there are no objects."""

CHANGEABLE: Final = frozenset({list, dict, set, bytearray, deque})
"""The types of containers that can be changed in place."""

_SMALL: Final = 1 << 62
_CONTAINERS: Final[dict[str, Callable[[Iterable[object]], object]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
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

    def sent(self, value: object) -> int | None:
        """Which of the containers that the other side has just sent this is; None for all others."""
        del value
        return None


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
    if kind in CHANGEABLE and (number := handles.sent(value)) is not None:
        return ["sent", number]
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
    for kind, underneath in _UNDERNEATH.items():
        if isinstance(value, kind):
            return encode(underneath(value), handles)
    return None


_UNDERNEATH: Final[dict[type, Callable[[Any], object]]] = {
    list: lambda value: [*list.__iter__(value)],
    tuple: lambda value: tuple(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}
"""By the built-in types' own methods, not by those that a subclass may have in their place."""


def _integer(value: int) -> Json:
    # JSON's digits take quadratic time, and Python refuses more than 4300 of them.
    return value if -_SMALL < value < _SMALL else ["int", hex(value)]


_FIELDS: Final[dict[type, Callable[[Any], list[Json]]]] = {
    bytes: lambda value: [value.hex()],
    bytearray: lambda value: [value.hex()],
    complex: lambda value: [value.real, value.imag],
    range: lambda value: [_integer(one) for one in (value.start, value.stop, value.step)],
    Fraction: lambda value: [str(value)],
    Decimal: lambda value: [str(value)],
    dt.datetime: lambda value: [value.isoformat()],
    dt.date: lambda value: [value.isoformat()],
    dt.time: lambda value: [value.isoformat()],
    dt.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}


def _rarer(value: object, handles: Handles) -> Json:
    kind = type(value)
    if kind in _FIELDS:
        return [kind.__name__, *_FIELDS[kind](value)]
    if isinstance(value, type):
        name = value.__name__
        return ["class", name] if vars(builtins).get(name) is value else handles.handle(value)
    if kind.__module__ == "collections" and isinstance(value, dict):  # Counter, OrderedDict, defaultdict
        return plain(value, handles)
    return handles.handle(value)


_BUILDERS: Final[dict[str, Callable[[list[Json]], object]]] = {
    "int": lambda fields: int(_text(fields[0]), 16),
    "bytes": lambda fields: bytes.fromhex(_text(fields[0])),
    "bytearray": lambda fields: bytearray.fromhex(_text(fields[0])),
    "complex": lambda fields: complex(_number(fields[0]), _number(fields[1])),
    "range": lambda fields: range(*map(_whole, fields)),
    "Fraction": lambda fields: Fraction(_text(fields[0])),
    "Decimal": lambda fields: Decimal(_text(fields[0])),
    "datetime": lambda fields: dt.datetime.fromisoformat(_text(fields[0])),
    "date": lambda fields: dt.date.fromisoformat(_text(fields[0])),
    "time": lambda fields: dt.time.fromisoformat(_text(fields[0])),
    "timedelta": lambda fields: dt.timedelta(*map(_whole, fields)),
    "class": lambda fields: _builtin_class(_text(fields[0])),
}


def _decode_list(kind: str, fields: list[Json], handles: Handles) -> object:
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([decode(one, handles) for one in fields])
    if kind == "dict":
        parts = [decode(one, handles) for one in fields]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if kind in _BUILDERS:
        return _BUILDERS[kind](fields)
    return handles.resolve(kind, fields)


def _builtin_class(name: str) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type):
        raise MalformedError(f"{name!r:.40} is no built-in class")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MalformedError("no text")
    return value


def _whole(value: object) -> int:
    """A whole number as `_integer` has written it."""
    match value:
        case int():
            return value
        case ["int", str(digits)]:
            return int(digits, 16)
    raise MalformedError("no whole number")


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise MalformedError("no number")
    return value
