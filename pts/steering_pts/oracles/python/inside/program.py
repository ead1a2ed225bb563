"""The process in which the program runs: defines what the program defines, and does what the tests ask of it."""

from __future__ import annotations

import math
import operator
import random
import sys
import types
from collections.abc import Callable
from typing import Any, Final, cast

from steering_pts.oracles.python.inside.arguments import CopiedArguments, containers
from steering_pts.oracles.python.inside.peer import Peer
from steering_pts.oracles.python.inside.values import Handles, Json, MalformedError, decode, encode, plain

MODULE: Final = "program"
"""Not `__main__`: what stands under `if __name__ == "__main__":` is for people, not for tests."""

OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    **{f"__{name}__": getattr(operator, name) for name in (
        "getitem", "setitem", "delitem", "index", "eq", "lt", "le", "gt", "ge", "add", "sub", "mul",
        "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "neg", "pos", "abs", "invert",
    )},
    "__len__": len, "__iter__": iter, "__next__": next, "__reversed__": reversed, "__str__": str, "__repr__": repr,
    "__bool__": bool, "__int__": int, "__float__": float, "__complex__": complex, "__bytes__": bytes, "__hash__": hash,
    "__round__": round, "__floor__": math.floor, "__ceil__": math.ceil, "__trunc__": math.trunc,
    "__dir__": dir, "__format__": format, "isinstance": isinstance, "issubclass": issubclass,
    "getattr": getattr, "setattr": setattr, "delattr": delattr,
    "__enter__": lambda value: type(value).__enter__(value),
    "__exit__": lambda value, *error: type(value).__exit__(value, *error),
}  # fmt: skip
"""What the tests may do to an object of the program, beside calling it."""


def run_program(source: str, reading: int, writing: int) -> None:
    """Does what the tests ask, until they end. The first thing they ask is to run the source."""
    random.seed(0)  # a verdict should not depend on chance; forked processes would seed themselves anew
    _Program(source, reading, writing).peer.answer_until_end()


class _Program(Handles):
    def __init__(self, source: str, reading: int, writing: int) -> None:
        self.peer = Peer(reading, writing, self.serve)
        self._source = source
        self._module = types.ModuleType(MODULE)
        self._objects: list[object] = []
        sys.modules[MODULE] = self._module

    def serve(self, question: list[Json]) -> list[Json]:
        try:
            return self._answer(question)
        except BaseException as error:  # noqa: BLE001  # anyone's code may raise anything
            return self._error(error)

    def handle(self, value: object) -> Json:
        if isinstance(value, _Theirs):
            return ["yours", value.number]
        self._objects.append(value)
        number = len(self._objects) - 1
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", number, *_names(value)]
        return ["object", number, plain(value, self)]

    def resolve(self, kind: str, fields: list[Json]) -> object:
        match kind, fields:
            case "yours", [int(number)]:
                return self._objects[number]
            case "function", [int(number)]:
                return _Theirs(self, number)
        raise MalformedError(kind)

    def _answer(self, question: list[Json]) -> list[Json]:
        match question:
            case ["define"]:
                # Runs anyone's code, in its own process behind all layers: that is what this module is for.
                code = compile(self._source, "<program>", "exec", dont_inherit=True)
                exec(code, vars(self._module))  # noqa: S102  # as above
                return ["value"]
            case ["names", *names]:
                found = vars(self._module)
                return [
                    "value",
                    *([encode(found[str(name)], self)] if name in found else None for name in names),
                ]
            case ["call", function, list(arguments), list(keywords)]:
                positional = [decode(argument, self) for argument in arguments]
                named = {str(name): decode(argument, self) for name, argument in keywords}
                sent = [*arguments, *(argument for _, argument in keywords)]
                copies = [
                    copy
                    for pair in zip(sent, [*positional, *named.values()], strict=True)
                    for copy in containers(*pair)
                ]
                copied = CopiedArguments(self, copies)
                called = cast("Callable[..., object]", decode(function, self))
                result = encode(called(*positional, **named), copied)
                return ["value", result, copied.changes()]
            case ["do", str(operation), bool(opaque), *arguments]:
                result = OPERATIONS[operation](*(decode(argument, self) for argument in arguments))
                return ["value", self.handle(result) if opaque else encode(result, self)]
        raise MalformedError("no question")

    def _error(self, error: BaseException) -> list[Json]:
        try:
            message = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
            arguments = [encode(one, self) for one in error.args]
        except BaseException:  # noqa: BLE001  # it may be an exception of the program's own making
            message, arguments = "", []
        self._objects.append(type(error))
        return ["error", len(self._objects) - 1, _names(type(error)), message, arguments]


class _Theirs:
    """A function of the tests that was handed to the program."""

    def __init__(self, program: _Program, number: int) -> None:
        self._program = program
        self.number = number

    def __call__(self, *arguments: object) -> object:
        program = self._program
        answer = program.peer.ask(
            ["call", self.number, [encode(argument, program) for argument in arguments]]
        )
        if answer[0] == "value":
            return decode(answer[1], program)
        raise RuntimeError(f"a function of the tests raised {answer[1]}")


def _names(kind: type) -> list[Json]:
    """The names of an exception's classes, from its own to the base of all."""
    return [base.__name__ for base in kind.__mro__]
