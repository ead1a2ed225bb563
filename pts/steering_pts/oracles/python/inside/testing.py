"""The process in which the tests run. The program's code is never in it, so what it reports is the tests' own word."""

from __future__ import annotations

import builtins
import importlib
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from steering_pts.oracles.python.inside.arguments import OriginalArguments, containers
from steering_pts.oracles.python.inside.peer import BrokenOffError, Peer
from steering_pts.oracles.python.inside.remote import Remote, describe
from steering_pts.oracles.python.inside.values import Handles, Json, MalformedError, decode, encode

_FUNCTIONS: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of the tests: `passed`, `failed`, or `unusable` (the tests themselves can't be run); and why."""

    outcome: str
    explanation: str


class UnusableError(BaseException):
    """The tests ask for something that this way of testing can't do."""


class ProgramError(BaseException):
    """The program ended or misbehaved; no test may catch it."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests as Python code, run after `preamble` with `names` from the program and `modules` of the standard library.

    Names that the program does not define stay undefined, or what the preamble has defined.
    """

    preamble: str
    tests: str
    names: tuple[str, ...]
    modules: tuple[str, ...]


def run_tests(suite: Suite, reading: int, writing: int) -> Report:
    """Has the program run and then runs the tests on it."""
    random.seed(0)
    program = _Program(reading, writing)
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    namespace = vars(module)
    try:
        code = compile(suite.tests, "<tests>", "exec", dont_inherit=True)
        before = compile(suite.preamble, "<preamble>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return Report("unusable", f"the tests can't be compiled: {error}")
    try:
        program.define()
        exec(before, namespace)  # noqa: S102  # the problem's own code, in its own process behind all layers
        namespace.update(program.find(suite.names))
        namespace.update({name: importlib.import_module(name) for name in suite.modules})
        exec(code, namespace)  # noqa: S102  # as above
    except BaseException as error:  # noqa: BLE001  # tests fail in all ways
        return _report(error, program, suite.tests)
    if program.unusable is not None:
        return Report("unusable", program.unusable)
    if program.ended is not None:  # in an exception that a test has swallowed
        return Report("failed", program.ended)
    return Report("passed", "all tests passed")


def _report(error: BaseException, program: _Program, tests: str) -> Report:
    if program.ended is not None:
        return Report("failed", program.ended)
    if program.unusable is not None:
        return Report("unusable", program.unusable)
    theirs = program.is_last_error(error)
    if isinstance(error, ImportError) and not theirs:
        return Report("unusable", f"the tests can't be run: {error}")
    return Report("failed", f"{_described(error)}{_place(error, tests)}")


def _described(error: BaseException) -> str:
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001  # its text may be an object of the program
        message = ""
    return f"{type(error).__name__}: {message:.300}" if message else type(error).__name__


def _place(error: BaseException, tests: str) -> str:
    line, trace = None, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<tests>" else line
        trace = trace.tb_next
    lines = tests.split("\n")
    return (
        f" in the tests' line {line}: {lines[line - 1].strip():.200}" if line and line <= len(lines) else ""
    )


class _Program(Handles):
    """The program, asked over the pipes. `ended` says how it ended, once it has; `unusable`, what it can't be asked."""

    def __init__(self, reading: int, writing: int) -> None:
        self._peer = Peer(reading, writing, self._serve)
        self._functions: list[Callable[..., object]] = []
        self._exceptions: dict[tuple[str, ...], type[BaseException]] = {}
        self._last_error: BaseException | None = None
        self.ended: str | None = None
        self.unusable: str | None = None

    def define(self) -> None:
        """Has the program's own code run; raises what it raises."""
        self._ask(["define"])

    def find(self, names: tuple[str, ...]) -> dict[str, object]:
        """Those of the names that the program defines."""
        found = self._ask(["names", *names])
        if len(found) != len(names):
            self._end("the program sent what is no message")
        return {
            name: self._decode(one[0])
            for name, one in zip(names, found, strict=True)
            if isinstance(one, list) and one
        }

    def is_last_error(self, error: BaseException) -> bool:
        """Whether it is the error that the program raised last."""
        return error is self._last_error

    def call(self, function: Remote, arguments: tuple[object, ...], keywords: dict[str, object]) -> object:
        values = [*arguments, *keywords.values()]
        sent = [encode(value, self) for value in values]
        positional, named = sent[: len(arguments)], sent[len(arguments) :]
        given = OriginalArguments(
            self, [original for pair in zip(sent, values, strict=True) for original in containers(*pair)]
        )
        keyed = [list(pair) for pair in zip(keywords, named, strict=True)]
        match self._ask(["call", describe(function), positional, keyed]):
            case [result, list(changes)]:
                try:
                    given.restore(changes)
                except (MalformedError, RecursionError):
                    self._end("the program sent what is no message")
                return self._decode(result, given)
        return self._end("the program sent what is no message")

    def do(self, operation: str, *arguments: object, opaque: bool = False) -> object:
        answer = self._ask(["do", operation, opaque, *(encode(argument, self) for argument in arguments)])
        match answer:
            case [["object" | "exception" | "yours", *_] as handle] if opaque:
                return self._decode(handle)
            case [value] if not opaque:
                return self._decode(value)
        return self._end("the program sent what is no message")

    def handle(self, value: object) -> Json:
        if isinstance(value, Remote):
            return describe(value)
        if isinstance(value, _FUNCTIONS):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        self.unusable = (
            f"the tests hand the program a {type(value).__name__}, which can't leave their process"
        )
        raise UnusableError(self.unusable)

    def resolve(self, kind: str, fields: list[Json]) -> object:
        match kind, fields:
            case "object", [int(number), underneath]:
                return Remote(self, number, decode(underneath, self))
            case "exception", [int(), *names]:
                return self._exception(names)
            case "yours", [int(number)]:
                return self._functions[number]
        raise MalformedError(kind)

    def _ask(self, question: list[Json]) -> list[Json]:
        if self.ended is not None:
            raise ProgramError(self.ended)
        try:
            kind, *fields = self._peer.ask(question)
        except BrokenOffError as error:
            self._end(str(error))
        if kind == "value":
            return fields
        match kind, fields:
            case "error", [int(), list(names), str(message), list(arguments)]:
                self._raise(names, message, arguments)
        return self._end("the program sent what is no message")

    def _raise(self, names: list[Json], message: str, arguments: list[Json]) -> NoReturn:
        kind = self._exception(names)
        if not issubclass(kind, Exception):
            self._end(f"the program raised {names[0]}")
        try:
            self._last_error = kind(*(self._decode(argument) for argument in arguments))
        except Exception:  # noqa: BLE001  # an exception that wants other arguments
            self._last_error = Exception(message)
        raise self._last_error

    def _exception(self, names: list[Json]) -> type[BaseException]:
        """The class of these names, its own first: from the built-in one among them on, it is Python's own."""
        key = tuple(str(name) for name in names)
        if key and key not in self._exceptions:
            found = vars(builtins).get(key[0])
            if isinstance(found, type) and issubclass(found, BaseException):
                return found
            base = self._exception(names[1:])
            self._exceptions[key] = type(key[0], (base,), {})
        return self._exceptions[key] if key else Exception

    def _decode(self, value: Json, given: Handles | None = None) -> object:
        try:
            return decode(value, given or self)
        except (MalformedError, RecursionError):
            return self._end("the program sent what is no value")

    def _serve(self, question: list[Json]) -> list[Json]:
        match question:
            case ["call", int(number), list(arguments)] if 0 <= number < len(self._functions):
                try:
                    function = self._functions[number]
                    return ["value", encode(function(*(decode(one, self) for one in arguments)), self)]
                except Exception as error:  # noqa: BLE001  # the program may call it with anything
                    return ["error", type(error).__name__]
        raise BrokenOffError("the program asked what it may not ask")

    def _end(self, reason: str) -> NoReturn:
        self.ended = reason
        raise ProgramError(reason)
