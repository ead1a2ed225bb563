"""An object of the program as the tests see it: everything they do to it happens in the program's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from steering_pts.oracles.python.inside.values import Json


class Program(Protocol):
    """The program, as its objects need it."""

    def call(self, function: Remote, arguments: tuple[object, ...], keywords: dict[str, object]) -> object:
        """What the function returns; raises what it raises."""

    def do(self, operation: str, *arguments: object, opaque: bool = False) -> object:
        """The result of one of the program's `OPERATIONS`; if opaque, always as a `Remote`."""


class Remote:
    """A function, class or object of the program.

    A program must not be able to pass a test with an object that says that it equals anything. So it never decides
    alone: against a plain value an object compares as what it is underneath (an instance of a subclass of list as a
    list), and an object that is nothing underneath equals no plain value; what `in` finds, it finds by iterating. Two
    objects of the program are compared, and arithmetic is done, by the program, and results of arithmetic stay objects.

    Arithmetic with a plain value tells the program that value, which may be what the tests expect (`f(3) - 9`). What
    comes of it is therefore no number and no truth to the tests, whatever it is underneath: it is `told`.
    """

    __slots__ = ("_number", "_plain", "_program", "_told")

    def __init__(self, program: Program, number: int, plain: object, *, told: bool = False) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_plain", None if told else plain)
        object.__setattr__(self, "_told", told)

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Calls it in the program's process."""
        return _program(self).call(self, arguments, keywords)

    def __getattr__(self, name: str) -> object:
        return _program(self).do("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _program(self).do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _program(self).do("delattr", self, name)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            return bool(_program(self).do("__eq__", self, other))
        plain = object.__getattribute__(self, "_plain")
        return plain is not None and bool(plain == other)

    def __hash__(self) -> int:
        return hash(_program(self).do("__hash__", self))

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and bool(_program(self).do("isinstance", instance, self))

    def __subclasscheck__(self, subclass: object) -> bool:
        return isinstance(subclass, Remote) and bool(_program(self).do("issubclass", subclass, self))


def describe(remote: Remote) -> Json:
    """How the program knows its object."""
    return ["yours", object.__getattribute__(remote, "_number")]


def _program(remote: Remote) -> Any:  # a Program, which object.__getattribute__ can't know
    return object.__getattribute__(remote, "_program")


def _is_told(value: object) -> bool:
    """Whether a value tells the program something, or the program has made it of what it was told."""
    return not isinstance(value, Remote) or bool(object.__getattribute__(value, "_told"))


def _forward(name: str) -> Callable[..., object]:
    def forwarded(self: Remote, *arguments: object) -> object:
        return _program(self).do(name, self, *arguments)

    return forwarded


def _number(name: str) -> Callable[..., object]:
    def number(self: Remote, *arguments: object) -> object:
        if _is_told(self):
            raise TypeError("the result of arithmetic with an object of the program is no number")
        return _program(self).do(name, self, *arguments)

    return number


def _between(name: str) -> Callable[..., object]:
    def between(self: Remote, other: object) -> object:
        return _program(self).do(name, self, other) if isinstance(other, Remote) else NotImplemented

    return between


def _arithmetic(name: str) -> Callable[..., object]:
    def arithmetic(self: Remote, *others: object) -> object:
        result = _program(self).do(name, self, *others, opaque=True)
        if isinstance(result, Remote) and any(map(_is_told, (self, *others))):
            return Remote(_program(self), object.__getattribute__(result, "_number"), None, told=True)
        return result

    return arithmetic


_FORWARDED: Final = "iter next reversed getitem setitem delitem str repr bytes dir format enter exit"
_NUMBERS: Final = "len bool int float complex index round floor ceil trunc"
_ARITHMETIC: Final = "add sub mul truediv floordiv mod pow matmul and or xor"

for _name in _FORWARDED.split():
    setattr(Remote, f"__{_name}__", _forward(f"__{_name}__"))
for _name in _NUMBERS.split():
    setattr(Remote, f"__{_name}__", _number(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _between(f"__{_name}__"))
for _name in _ARITHMETIC.split():
    # operator's functions for & and | have other names, as `and` and `or` are words of the language.
    setattr(Remote, f"__{_name}__", _arithmetic(f"__{_name}{'_' * (_name in {'and', 'or'})}__"))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(Remote, f"__{_name}__", _arithmetic(f"__{_name}__"))
