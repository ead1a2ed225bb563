"""Reading and writing vector files. Safetensors only; a file is read as a whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from steering_engine.errors import VectorFileError
from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.schema import SCHEMA, SteeringVector, VectorMetadata

_UNIT_TOLERANCE = 1e-4
_MAX_CONTEXT_IDS = 1 << 18  # ready for matching, an id takes about 300 bytes
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})\Z")


def save_vector(path: Path, vector: SteeringVector) -> str:
    """Writes a vector file in one step (a temporary file, then a rename) and returns its SHA-256.

    Raises:
        VectorFileError: The vector would not be read back; nothing is written.
    """
    data = encode_vector(vector)
    checked = parse_vector(data, source=str(path))
    _write_whole(path, data)
    return checked.sha256


def encode_vector(vector: SteeringVector) -> bytes:
    """The bytes of a vector file; equal vectors give equal bytes, and so equal digests."""
    # Copies, because directions are often rows of one matrix, and safetensors refuses tensors that share memory.
    tensors = {
        f"direction.{block}": direction.clone(memory_format=torch.contiguous_format)
        for block, direction in sorted(vector.directions.items())
    }
    if vector.contexts:
        lengths = torch.tensor([0, *(len(context) for context in vector.contexts)], dtype=torch.int64)
        tensors["context.offsets"] = lengths.cumsum(0)
        tensors["context.ids"] = torch.tensor(
            [i for context in vector.contexts for i in context], dtype=torch.int32
        )
    fields = vector.metadata.model_dump(mode="json", by_alias=True)
    data = save(tensors, metadata={key: json.dumps(value, sort_keys=True) for key, value in fields.items()})
    return _with_sorted_metadata(data)


def _with_sorted_metadata(data: bytes) -> bytes:
    # The library writes metadata in an order that changes from call to call.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_vector(path: Path) -> SteeringVector:
    """Reads a vector file.

    Raises:
        VectorFileError: The file is wrong; the error holds every problem.
        FileNotFoundError: There is no such file.
    """
    return parse_vector(path.read_bytes(), source=path.name)


def parse_vector(data: bytes, source: str) -> SteeringVector:
    """Reads the bytes of a vector file; `source` names it in errors.

    Raises:
        VectorFileError: Something is wrong; the error holds every problem.
    """
    try:
        tensors = load(data)
        header = _metadata_texts(data)
    except (SafetensorError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise VectorFileError(source, [f"not a sound safetensors file: {error}"]) from error
    if "schema" not in header:
        raise VectorFileError(
            source, [f"not a steering vector: its metadata name no schema (expected {SCHEMA})"]
        )
    problems: list[str] = []
    metadata = _metadata(header, problems)
    directions, contexts = _tensors(tensors, metadata, problems)
    if problems or metadata is None:
        raise VectorFileError(source, problems)
    return SteeringVector(metadata, directions, contexts, hashlib.sha256(data).hexdigest())


def _metadata_texts(data: bytes) -> dict[str, str]:
    # `load` checked the layout, so the header's length and text are sound here.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    texts: dict[str, str] = header.get("__metadata__", {})
    return texts


def _metadata(texts: dict[str, str], problems: list[str]) -> VectorMetadata | None:
    values: dict[str, Any] = {}
    for key, text in texts.items():
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested too deeply
            problems.append(f"metadata {key!r} is not JSON")
    try:
        return VectorMetadata.model_validate(values)
    except ValidationError as error:
        for fault in error.errors():
            where = ".".join(map(str, fault["loc"]))
            problems.append(f"metadata {where!r}: {fault['msg']}")
        return None


def _tensors(
    tensors: dict[str, torch.Tensor], metadata: VectorMetadata | None, problems: list[str]
) -> tuple[dict[int, torch.Tensor], tuple[tuple[int, ...], ...]]:
    directions: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if match := _DIRECTION.match(name):
            directions[int(match[1])] = tensor
        elif name not in ("context.ids", "context.offsets"):
            problems.append(f"unknown tensor {name!r}")
    if not directions:
        problems.append("no tensor direction.{block}")
    for block, direction in sorted(directions.items()):
        problems += [f"direction.{block}: {text}" for text in _direction_problems(block, direction, metadata)]
    if metadata is not None:
        for name, values in (
            ("calibrated_strength", metadata.calibrated_strength),
            ("residual_norm", metadata.residual_norm),
        ):
            if set(values) != set(directions):
                problems.append(
                    f"metadata {name!r} is for blocks {sorted(values)}, the directions for {sorted(directions)}"
                )
    contexts = _contexts(tensors, problems)
    if metadata is not None and contexts and metadata.context_min_match < 1:
        problems.append("metadata 'context_min_match' must be at least 1 for a file with contexts")
    return directions, contexts


def _direction_problems(block: int, direction: torch.Tensor, metadata: VectorMetadata | None) -> list[str]:
    if metadata is not None and block >= metadata.block_count:
        return [f"the model has blocks 0 to {metadata.block_count - 1}"]
    if direction.dtype != torch.float32:
        return [f"dtype {direction.dtype}, expected float32"]
    if direction.ndim != 1 or (metadata is not None and len(direction) != metadata.hidden_size):
        expected = metadata.hidden_size if metadata is not None else "hidden"
        return [f"shape {list(direction.shape)}, expected [{expected}]"]
    if not torch.isfinite(direction).all():
        return ["has a value that is not finite"]
    norm = direction.double().norm().item()
    return [] if abs(norm - 1) <= _UNIT_TOLERANCE else [f"norm {norm:.6g}, expected 1"]


def _contexts(tensors: dict[str, torch.Tensor], problems: list[str]) -> tuple[tuple[int, ...], ...]:
    ids, offsets = tensors.get("context.ids"), tensors.get("context.offsets")
    if ids is None and offsets is None:
        return ()
    if ids is None or offsets is None:
        problems.append("context.ids and context.offsets must come together")
    elif ids.dtype != torch.int32 or ids.ndim != 1 or offsets.dtype != torch.int64 or offsets.ndim != 1:
        problems.append("context.ids must be int32 [n] and context.offsets int64 [m + 1]")
    else:
        return _split_contexts(ids.tolist(), offsets.tolist(), problems)
    return ()


def _split_contexts(ids: list[int], offsets: list[int], problems: list[str]) -> tuple[tuple[int, ...], ...]:
    spans = list(itertools.pairwise(offsets))
    lengths = [end - start for start, end in spans]
    if not lengths or offsets[0] != 0 or offsets[-1] != len(ids) or min(lengths) < 1:
        problems.append("context.offsets must rise from 0 to the number of ids, without an empty context")
    elif max(lengths) > MAX_CONTEXT_TOKENS:
        problems.append(f"a context has {max(lengths)} ids; at most {MAX_CONTEXT_TOKENS} are kept")
    elif len(ids) > _MAX_CONTEXT_IDS:
        problems.append(f"its contexts have {len(ids)} ids in all; at most {_MAX_CONTEXT_IDS} are allowed")
    elif min(ids) < 0:
        problems.append("context.ids holds a negative id")
    else:
        return tuple(tuple(ids[start:end]) for start, end in spans)
    return ()
