"""The header of a vector file, judged before anything is made of what it claims.

Safetensors (https://github.com/huggingface/safetensors#format): eight bytes of the header's length; the header as JSON,
tensors by name with type, shape and place, and texts under `__metadata__`; the tensors' bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_HEADER_BYTES = 4 * 1024 * 1024
"""Longest header that is read; reading JSON holds every other thread up."""
MAX_METADATA_BYTES = 256 * 1024
"""Most bytes of all metadata together; loaded vectors keep them, and lists of vectors tell them."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_OTHER_FORMATS = {
    b"\x80": "a Python pickle",
    b"PK": "a zip archive, as torch.save writes",
    b"GGUF": "a GGUF file",
}


def read_header(data: bytes) -> dict[str, str]:
    """The metadata of a file whose header is sound, as far as the library does not judge it with a clear reason.

    Raises:
        ValueError: The header is not; the message says why.
    """
    room = len(data) - _LENGTH_BYTES
    if room < 0:
        raise ValueError(f"the file has {len(data)} bytes, fewer than any safetensors file")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > room:
        other = next((what for magic, what in _OTHER_FORMATS.items() if data.startswith(magic)), None)
        raise ValueError(
            f"its header claims {length} bytes, and {room} are there"
            if other is None
            else f"{other}; only safetensors are read"
        )
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    header = _object(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    claimed = max(_ends(header), default=0)
    if claimed > room - length:
        raise ValueError(f"its tensors claim {claimed} bytes, and {room - length} are there")
    texts = header.get(_METADATA, {})
    if not (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())):
        raise ValueError("its metadata are no texts by name")
    return texts


def metadata_bytes(texts: Mapping[str, str]) -> int:
    """Bytes of metadata, their names among them."""
    return sum(len(text.encode(errors="surrogatepass")) for pair in texts.items() for text in pair)


def unique_json(text: str | bytes) -> tuple[Any, list[str]]:
    """Reads JSON; also the names that an object of it has more than once, which `json` takes the last of.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice.extend(name for name, count in counts.items() if count > 1)
        return found

    return json.loads(text, object_pairs_hook=unique), twice


def _object(text: bytes) -> dict[str, Any]:
    try:
        header, twice = unique_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 -- of the file, not of a caller
    if twice:  # the library takes the last without a word, too
        raise ValueError(f"its header has {listed(twice)} more than once")
    return header


def listed(names: Sequence[str]) -> str:
    """Names in a message, the first few of many."""
    return ", ".join(map(repr, names[:10])) + (" and others" if len(names) > 10 else "")


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    """Where each tensor ends, as far as it says so."""
    for name, told in header.items():
        match told:
            case {"data_offsets": [_, int(end)]} if name != _METADATA:
                yield end
