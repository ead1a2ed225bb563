"""Two processes that ask each other over a pair of pipes: JSON messages, each behind its length."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Final

from steering_pts.oracles.python.inside.values import Json

MAX_BYTES: Final = 64 * 1024 * 1024
_HEADER: Final = 8


class BrokenOffError(BaseException):
    """The other side ended or sent what is no message. No test may catch it as if it were an error of the program."""


class Peer:
    """Asks, and answers what the other side asks while it waits (a test's function that the program calls)."""

    def __init__(self, reading: int, writing: int, serve: Callable[[list[Json]], list[Json]]) -> None:
        self._reading = reading
        self._writing = writing
        self._serve = serve

    def ask(self, question: list[Json]) -> list[Json]:
        """The other side's answer.

        Raises:
            BrokenOffError: there is none.
        """
        self._send("ask", question)
        while True:
            kind, content = self._receive()
            if kind == "answer":
                return content
            self._send("answer", self._serve(content))

    def answer_until_end(self) -> None:
        """Answers until the other side has gone."""
        while True:
            try:
                _, question = self._receive()
            except BrokenOffError:
                return
            self._send("answer", self._serve(question))

    def _send(self, kind: str, content: list[Json]) -> None:
        data = json.dumps([kind, content]).encode()
        data = len(data).to_bytes(_HEADER, "big") + data
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except OSError:
            raise BrokenOffError("the program ended before the tests did") from None

    def _receive(self) -> tuple[str, list[Json]]:
        length = int.from_bytes(self._read(_HEADER), "big")
        if length > MAX_BYTES:
            raise BrokenOffError(f"the program sent a value of {length} bytes, more than {MAX_BYTES}")
        try:
            message = json.loads(self._read(length))
        except (ValueError, RecursionError):
            raise BrokenOffError("the program sent what is no message") from None
        match message:
            case [("ask" | "answer") as kind, list(content)] if content:
                return kind, content
        raise BrokenOffError("the program sent what is no message")

    def _read(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            try:
                part = os.read(self._reading, min(length, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise BrokenOffError("the program ended before the tests did")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
