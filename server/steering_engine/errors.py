"""Errors of the engine.

EngineError
├── ModelError             a model that can't be loaded or can't be run
├── VectorFileError        a vector file that is wrong; `.problems` says everything that is
│   └── VectorMismatchError    a sound vector file that was made for another model
├── VectorExistsError      a name that is loaded with another file
├── VectorMemoryError      a vector with which loaded vectors would take too much memory
├── VectorTableFullError   a vector for whose rows there is no room
├── NotFiniteError         a request's logits are not finite, most often because it is steered too strongly
└── EngineStoppedError     the engine stopped (or failed) before the request was done
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

_MAX_REASON_CHARACTERS = 300


class EngineError(Exception):
    """Base of all errors of the engine."""


def one_line(error: BaseException) -> str:
    """What an error of another library says, on one line and not endlessly long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[: _MAX_REASON_CHARACTERS - 1] + "…"


class ModelError(EngineError):
    """A model that can't be loaded, or that the engine can't run; the message says why."""


class VectorFileError(EngineError):
    """A vector file that is wrong. `problems` holds everything that is, one sentence each.

    `field` is that of a LoadVector request to blame: its source, or the digest that it expects.
    """

    def __init__(
        self, source: str, problems: Sequence[str], field: Literal["source", "sha256"] = "source"
    ) -> None:
        self.source = source
        self.problems = tuple(problems)
        self.field = field
        super().__init__(f"{source}: " + "; ".join(self.problems))


class VectorMismatchError(VectorFileError):
    """A sound vector file that was made for another model."""


class VectorExistsError(EngineError):
    """A name that is already loaded with another file."""


class VectorMemoryError(EngineError):
    """A vector with which loaded vectors would take too much memory; nothing of it is loaded.

    Attributes:
        needed: Bytes that it needs.
        used: Bytes that loaded vectors take.
        limit: Bytes that they may take.
    """

    def __init__(self, *, needed: int, used: int, limit: int) -> None:
        self.needed = needed
        self.used = used
        self.limit = limit
        super().__init__(
            f"the vector needs {needed} bytes, and loaded vectors take {used} of {limit} already; unload some, or make "
            "vector_memory_bytes larger"
        )


class VectorTableFullError(EngineError):
    """A vector for whose rows there is no room; nothing of it is loaded.

    Attributes:
        block: The block where most rows are lacking.
        needed: Rows that the vector needs there.
        free: Rows that are free there.
        total: Rows that there are for vectors.
    """

    def __init__(self, block: int, *, needed: int, free: int, total: int) -> None:
        self.block = block
        self.needed = needed
        self.free = free
        self.total = total
        super().__init__(
            f"the vector needs {needed} of block {block}'s rows, and {free} of {total} are free; "
            "a larger vector_table_bytes makes room"
        )


class NotFiniteError(EngineError):
    """A request's logits are not finite, so there is nothing to sample; only this request ends."""


class EngineStoppedError(EngineError):
    """The engine stopped, or failed, before the request was done."""
