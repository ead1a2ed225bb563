"""What becomes of the arguments of a call: a function may change them in place, or return them.

The program works on copies. Both sides number the containers in the arguments, those inside others too, in the order in
which they were sent. So the program can say which of them it has changed and which stand in its result, and the tests
put the originals there.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from steering_pts.oracles.python.inside.values import (
    CHANGEABLE,
    Handles,
    Json,
    MalformedError,
    decode,
    encode,
)

_NAMES: Final = frozenset(kind.__name__ for kind in CHANGEABLE)


def containers(sent: Json, value: object) -> Iterator[object]:
    """The containers in a value that can be changed, outermost first; `sent` is the value as JSON.

    By the JSON, since objects of the program stand in it as handles, and their content is nobody else's.
    """
    match sent:
        case [str(kind), *fields]:
            if kind in _NAMES:
                yield value
            if kind == "dict":
                parts = cast("dict[object, object]", value).values()
                yield from _inner(fields[1::2], tuple(parts))
            elif kind in {"list", "tuple", "deque"}:
                yield from _inner(fields, tuple(cast("Sequence[object]", value)))


def _inner(fields: Sequence[Json], parts: Sequence[object]) -> Iterator[object]:
    for field, part in zip(fields, parts, strict=True):
        yield from containers(field, part)


class CopiedArguments(Handles):
    """The containers in the arguments of one call, in the program's process."""

    def __init__(self, program: Handles, copies: Sequence[object]) -> None:
        self._program = program
        self._copies = copies
        self._numbers = {id(copy): number for number, copy in enumerate(copies)}
        self._before = [self._snapshot(copy) for copy in copies]

    def changes(self) -> list[Json]:
        """The number and the content of every container that is not as it was."""
        return [
            [number, encode(_content(copy), self)]
            for number, copy in enumerate(self._copies)
            if self._snapshot(copy) != self._before[number]
        ]

    def handle(self, value: object) -> Json:
        """As the program describes what stays with it."""
        return self._program.handle(value)

    def resolve(self, kind: str, fields: list[Json]) -> object:
        """As the program knows it."""
        return self._program.resolve(kind, fields)

    def sent(self, value: object) -> int | None:
        """The number of a container, by its identity."""
        return self._numbers.get(id(value))

    def _snapshot(self, copy: object) -> str:
        return json.dumps(encode(_content(copy), _Identities(self._numbers)))


class OriginalArguments(Handles):
    """The containers in the arguments of one call, in the process of the tests."""

    def __init__(self, tests: Handles, originals: Sequence[object]) -> None:
        self._tests = tests
        self._originals = originals

    def restore(self, changes: Sequence[Json]) -> None:
        """Gives the originals the content that the program's function has left in their copies.

        Raises:
            MalformedError: these are no changes.
        """
        for change in changes:
            match change:
                case [int(number), [str(kind), *_] as content] if kind in _NAMES and 0 <= number < len(
                    self._originals
                ):
                    _replace(self._originals[number], decode(content, self))
                case _:
                    raise MalformedError("no change")

    def handle(self, value: object) -> Json:
        """As the tests describe what stays with them."""
        return self._tests.handle(value)

    def resolve(self, kind: str, fields: list[Json]) -> object:
        """An original that the program returns, or else as the tests know it."""
        match kind, fields:
            case "sent", [int(number)] if 0 <= number < len(self._originals):
                return self._originals[number]
        return self._tests.resolve(kind, fields)


class _Identities(Handles):
    """Describes what a container holds, to see whether it is still the same."""

    def __init__(self, numbers: dict[int, int]) -> None:
        self._numbers = numbers

    def handle(self, value: object) -> Json:
        return ["object", id(value)]

    def resolve(self, kind: str, fields: list[Json]) -> object:
        raise MalformedError(f"{kind} of {fields}")

    def sent(self, value: object) -> int | None:
        return self._numbers.get(id(value))


def _content(container: Any) -> object:
    """A container of the same type and content, which is none of those that were sent."""
    return type(container)(container)


def _replace(original: object, new: Any) -> None:
    if isinstance(original, list | bytearray) and type(original) is type(new):
        original[:] = new
    elif isinstance(original, dict) and isinstance(new, dict):
        original.clear()
        dict.update(original, new)  # Counter's own would add numbers up
    elif isinstance(original, set) and isinstance(new, set):
        original.clear()
        original.update(new)
    elif isinstance(original, deque) and isinstance(new, deque):
        original.clear()
        original.extend(new)
    else:
        raise MalformedError("another type")
