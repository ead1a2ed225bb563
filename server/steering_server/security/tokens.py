"""Bearer tokens: who may do what. Only their digests are held in memory.

A token is drawn at random, so a plain SHA-256 of it tells nothing that helps to guess it, and costs microseconds where
the slow hashes for passwords would hold every call up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from steering_server.errors import StartError
from steering_server.security.secret_files import read_secret

MIN_TOKEN_CHARACTERS = 20
MAX_TOKEN_CHARACTERS = 512

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Scope(Enum):
    """What a token allows."""

    GENERATE = "generate"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """Who a token was given to, as the log names them, and what it allows."""

    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens that are taken: the digest of each, and its holder."""

    entries: tuple[tuple[bytes, TokenHolder], ...] = field(repr=False)

    def holder(self, token: str) -> TokenHolder | None:
        """Whose token it is; takes as long whichever it is, and whether it is any."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for known, holder in self.entries:
            if hmac.compare_digest(known, digest):
                found = holder
        return found


def read_tokens(path: Path) -> Tokens:
    """Reads a file with a line `NAME SCOPES TOKEN` for each token; `#` begins a comment.

    Scopes are `generate` and `admin`, with a comma where there are both. In place of the token may stand
    `sha256:{digest}`, in lowercase hex.

    Raises:
        StartError: Something is wrong, all of it at once; lines are told by number, their content never.
    """
    try:
        text = read_secret(path).decode("ascii")
    except UnicodeDecodeError:
        raise StartError(
            f"{str(path)!r} holds more than ASCII, which is all that tokens are made of"
        ) from None
    entries: list[tuple[bytes, TokenHolder]] = []
    faults: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        entry, wrong = _entry(words)
        if entry is not None:
            wrong += _repetition(entry, entries)
            entries.append(entry)
        faults += [f"line {number}: {fault}" for fault in wrong]
    if faults:
        raise StartError(f"{str(path)!r}: " + "; ".join(faults))
    return Tokens(tuple(entries))


def _entry(words: Sequence[str]) -> tuple[tuple[bytes, TokenHolder] | None, list[str]]:
    if len(words) != 3:
        return None, [f"expected three words, a name, scopes and a token, and found {len(words)}"]
    name, scopes, token = words
    faults = []
    if not _NAME.fullmatch(name):
        faults.append("a name has at most 64 letters, digits and . _ -")
    allowed = {scope.value: scope for scope in Scope}
    if not set(scopes.split(",")) <= set(allowed):
        faults.append("scopes are generate, admin, or generate,admin")
    hashed = _DIGEST.fullmatch(token)
    if not hashed and not (
        _TOKEN.fullmatch(token) and MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS
    ):
        faults.append(
            f"a token has {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} letters, digits and . _ ~ + / -, "
            "with = at the end; or it is sha256: and 64 hex digits"
        )
    if faults:
        return None, faults
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(token.encode()).digest()
    return (digest, TokenHolder(name, frozenset(allowed[word] for word in scopes.split(",")))), []


def _repetition(entry: tuple[bytes, TokenHolder], earlier: Sequence[tuple[bytes, TokenHolder]]) -> list[str]:
    digest, holder = entry
    faults = []
    if any(holder.name == known.name for _, known in earlier):
        faults.append("the name stands above already")
    if any(hmac.compare_digest(digest, known) for known, _ in earlier):
        faults.append("the token stands above already")
    return faults
