"""Vector files that somebody made to do harm, or that something has spoilt, each with what must be said of it."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.support.vector_files import changed, drop_tensor, set_metadata, set_tensor, unit

UNSOUND = "not a sound safetensors file: "
TEN_GB = 10 * 2**30
_METADATA = {"schema": '"steering.vector/1"'}


class Hostile(NamedTuple):
    """A file, and everything that is wrong with it."""

    data: bytes
    problems: tuple[str, ...]


def hostile_vectors(sound: bytes) -> dict[str, Hostile]:
    """Hostile files by a name that a vector may have; `sound` is the file of `full_vector` for a width of 32."""
    length = int.from_bytes(sound[:8], "little")
    room, body = len(sound) - 8, len(sound) - 8 - length
    spoilt: dict[str, tuple[Callable[..., None], str]] = {
        "half-precision": (
            set_tensor("direction.0", unit(32).half()),
            "direction.0: dtype torch.float16, expected float32",
        ),
        "integers": (
            set_tensor("direction.0", unit(32).int()),
            "direction.0: dtype torch.int32, expected float32",
        ),
        "nan": (
            set_tensor("direction.0", unit(32) * float("nan")),
            "direction.0: has a value that is not finite",
        ),
        "not-unit": (set_tensor("direction.0", 2 * unit(32)), "direction.0: norm 2, expected 1"),
        "too-wide": (set_tensor("direction.0", unit(64)), "direction.0: shape [64], expected [32]"),
        "missing-direction": (
            drop_tensor("direction.2"),
            (
                "metadata 'calibrated_strength' is for blocks [0, 2], the directions for [0]; "
                "metadata 'residual_norm' is for blocks [0, 2], the directions for [0]"
            ),
        ),
        "missing-bias": (
            drop_tensor("probe.1.bias"),
            "probe.1.weight and probe.1.bias must come together",
        ),
        "unknown-tensor": (set_tensor("payload", unit(2)), "unknown tensor 'payload'"),
        "no-such-block": (
            set_tensor("probe.9.weight", unit(32)),
            "probe.9.weight and probe.9.bias must come together; probe.9.weight: the model has blocks 0 to 2",
        ),
        "another-schema": (
            set_metadata(schema="steering.vector/9"),
            "metadata 'schema': Input should be 'steering.vector/1'",
        ),
    }
    archive = io.BytesIO()
    torch.save({"direction.0": unit(32)}, archive)
    first = {"direction.0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    entry = json.dumps(first)[1:-1]
    files = {
        "empty": Hostile(b"", (f"{UNSOUND}the file has 0 bytes, fewer than any safetensors file",)),
        "cut-in-header": Hostile(
            sound[:100], (f"{UNSOUND}its header claims {length} bytes, and 92 are there",)
        ),
        "cut-in-tensors": Hostile(
            sound[:-1], (f"{UNSOUND}its tensors claim {body} bytes, and {body - 1} are there",)
        ),
        "header-claims-10-gb": Hostile(
            TEN_GB.to_bytes(8, "little") + sound[8:],
            (f"{UNSOUND}its header claims {TEN_GB} bytes, and {room} are there",),
        ),
        "tensor-claims-10-gb": Hostile(
            with_header(
                {"direction.0": {"dtype": "F32", "shape": [TEN_GB // 4], "data_offsets": [0, TEN_GB]}}
            ),
            (f"{UNSOUND}its tensors claim {TEN_GB} bytes, and 0 are there",),
        ),
        "twice": Hostile(
            with_header(f"{{{entry}, {entry}}}", bytes(8)),
            (f"{UNSOUND}its header has 'direction.0' more than once",),
        ),
        "no-json": Hostile(
            with_header("{" * 3),
            (
                (
                    f"{UNSOUND}its header is no JSON: Expecting property name enclosed in double quotes: "
                    "line 1 column 2 (char 1)"
                ),
            ),
        ),
        "a-list": Hostile(with_header("[]"), (f"{UNSOUND}its header is no JSON object",)),
        "strange-type": Hostile(
            with_header({"direction.0": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}, bytes(8)),
            (f"{UNSOUND}torch has no type F4",),
        ),
        "metadata-no-texts": Hostile(
            with_header({**first, "__metadata__": {"schema": 1}}, bytes(8)),
            (f"{UNSOUND}its metadata are no texts by name",),
        ),
        "pickle": Hostile(
            pickle.dumps({"direction.0": [1.0]}), (f"{UNSOUND}a Python pickle; only safetensors are read",)
        ),
        "torch-save": Hostile(
            archive.getvalue(),
            (f"{UNSOUND}a zip archive, as torch.save writes; only safetensors are read",),
        ),
        "no-vector": Hostile(
            with_header(first, bytes(8)),
            ("not a steering vector: its metadata name no schema (expected steering.vector/1)",),
        ),
    }
    for name, (change, problems) in spoilt.items():
        files[name] = Hostile(changed(sound, change), tuple(problems.split("; ")))
    return files


def with_header(header: str | dict[str, Any], body: bytes = b"") -> bytes:
    """A file with this header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body
