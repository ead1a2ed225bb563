"""Resource names: `models/{model}` and `vectors/{vector}`, optionally pinned to a file by `@{sha256}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VECTOR_ID = re.compile(r"[a-z][a-z0-9-]{0,62}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

SHA256_RULE = "64 digits of lowercase hex"
VECTOR_NAME_RULE = "vectors/{vector} with vector = [a-z][a-z0-9-]{0,62}, optionally @{sha256}"


@dataclass(frozen=True, slots=True)
class VectorRef:
    """A vector's id and, when pinned, the SHA-256 of its file."""

    id: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The resource name with the pin, such as `vectors/strategy@ab12…`."""
        return f"vectors/{self.id}" + (f"@{self.sha256}" if self.sha256 else "")

    @classmethod
    def parse(cls, text: str) -> VectorRef:
        """Reads `strategy`, `vectors/strategy` or either with `@sha256`.

        Raises:
            ValueError: The text is none of these; the message says what would be right.
        """
        identifier, at, digest = text.removeprefix("vectors/").partition("@")
        if not _VECTOR_ID.match(identifier) or (at and not _SHA256.match(digest)):
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise ValueError(f"{shown!r} is no vector name; expected {VECTOR_NAME_RULE}")
        return cls(identifier, digest or None)


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 as it is written everywhere here, in lowercase hex."""
    return _SHA256.match(text) is not None
