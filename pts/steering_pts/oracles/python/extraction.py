"""Which program a completion gives, and from where on nothing can change that."""

from __future__ import annotations

import re
from typing import Final

from steering_pts.oracles.python.problem_tests import ProblemTests

_FENCE: Final = re.compile(r"[ ]{0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*")
_LANGUAGES: Final = frozenset({"", "python", "py", "python3", "py3", "python-3"})
_CLOSERS: Final = (")", "]", "}")


def extract_program(completion: str, tests: ProblemTests) -> str | None:
    """The program in a completion; None where there is none.

    1. The first closed fenced block of Python (or of no named language) that defines every name that the tests ask
       for, at the beginning of a line: by `def`, `class` or `=`.
    2. Else all such blocks together; the last may be without its closing fence.
    3. Without blocks, where the problem's prompt is code and the text does not define the name itself: the prompt,
       continued by the text up to its first line that is not indented.
    4. Else the whole text.

    Before a program of a fenced block or a whole text stands what the prompt has before its function: its imports.
    """
    blocks, unclosed = _blocks(completion)
    for block in blocks:
        if _defines_all(block, tests.wanted):
            return tests.head + block
    every = [*blocks, *([unclosed] if unclosed is not None else [])]
    if every:
        text = "\n".join(every)
        if tests.prompt and not _defines_all(text, tests.wanted):
            return tests.prompt + _body(text)
        return (tests.head + text) if text.strip() else None
    if not completion.strip():
        return None
    if tests.prompt and not _defines_all(completion, tests.wanted):
        return tests.prompt + _body(completion)
    return tests.head + completion


class ProgramWatcher:
    """Tells when a completion's program is final: from the closing fence of a block that defines all names."""

    def __init__(self, tests: ProblemTests) -> None:
        self._wanted = tests.wanted
        self._line = ""
        self._blocks = _Blocks()
        self._closed = False

    def __call__(self, piece: str) -> bool:
        """Takes the next piece of the completion; True once no continuation can change the program."""
        *lines, self._line = (self._line + piece).split("\n")
        for line in lines:
            block = self._blocks.add(line)
            self._closed = self._closed or (block is not None and _defines_all(block, self._wanted))
        return self._closed


class _Blocks:
    """Fenced blocks, found line by line."""

    def __init__(self) -> None:
        self._fence: str | None = None
        self._is_python = False
        self._lines: list[str] = []

    def add(self, line: str) -> str | None:
        """Takes a whole line; the block that it closes, if it closes one of Python."""
        match = _FENCE.fullmatch(line.rstrip("\r"))
        if self._fence is None:
            if match is not None:
                self._fence, self._is_python = match[1], match[2].lower() in _LANGUAGES
                self._lines = []
            return None
        if match is None or match[2] or not match[1].startswith(self._fence):
            self._lines.append(line)
            return None
        self._fence = None
        return "\n".join([*self._lines, ""]) if self._is_python else None

    @property
    def unclosed(self) -> str | None:
        """The block of Python that is still open, if one is."""
        return "\n".join([*self._lines, ""]) if self._fence is not None and self._is_python else None


def _blocks(completion: str) -> tuple[list[str], str | None]:
    found = _Blocks()
    closed = [block for line in completion.split("\n") if (block := found.add(line)) is not None]
    return closed, found.unclosed


def _defines_all(text: str, names: tuple[str, ...]) -> bool:
    return all(_pattern(name).search(text) for name in names)


def _pattern(name: str) -> re.Pattern[str]:
    name = re.escape(name)
    return re.compile(
        rf"^(?:(?:async[ \t]+)?def[ \t]+{name}\b|class[ \t]+{name}\b|{name}[ \t]*(?::[^=\n]*)?=(?!=))",
        re.MULTILINE,
    )


def _body(text: str) -> str:
    """The text up to the first line after its first that begins something else: not indented, and no bracket."""
    lines = text.split("\n")
    first = next((index for index, line in enumerate(lines) if line.strip()), 0)
    for index, line in enumerate(lines[first + 1 :], start=first + 1):
        if line.strip() and not line[0].isspace() and not line.startswith(_CLOSERS):
            return "\n".join([*lines[:index], ""])
    return text
