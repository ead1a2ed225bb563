"""Reading and writing vector files. Safetensors only; a file is read as a whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from steering_engine.errors import VectorFileError
from steering_engine.vectors.header import (
    MAX_METADATA_BYTES,
    listed,
    metadata_bytes,
    read_header,
    unique_json,
)
from steering_engine.vectors.schema import MAX_METADATA_ENTRIES, SCHEMA, SteeringVector, VectorMetadata
from steering_engine.vectors.tensors import tensor_problems, tensors_of, vector_of
from steering_spec import limits


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
    fields = vector.metadata.model_dump(mode="json", by_alias=True)
    texts = {key: json.dumps(value, sort_keys=True) for key, value in fields.items()}
    data = save(tensors_of(vector), metadata=texts)
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
    return parse_vector(read_vector_file(path), source=path.name)


def read_vector_file(path: Path) -> bytes:
    """The bytes of a vector file; its size is judged before anything is read.

    Raises:
        VectorFileError: It is too large, or no file at all.
        OSError: It can't be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
        raise VectorFileError(path.name, ["not a regular file"])
    most = limits.MAX_VECTOR_FILE_BYTES
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:  # it may grow while it is read
        raise VectorFileError(path.name, [f"{max(size, len(data))} bytes; at most {most} are allowed"])
    return data


def check_inside(path: Path, directory: Path) -> None:
    """Refuses a link that leads out of a vector directory.

    Raises:
        VectorFileError: It does, or can't be followed.
    """
    try:
        if path.resolve().is_relative_to(directory.resolve()):
            return
    except (OSError, RuntimeError):  # a loop of links
        raise VectorFileError(path.name, ["a link that can't be followed"]) from None
    raise VectorFileError(path.name, ["a link that leads out of the vector directory"])


def parse_vector(data: bytes, source: str) -> SteeringVector:
    """Reads the bytes of a vector file; `source` names it in errors.

    Raises:
        VectorFileError: Something is wrong; the error holds every problem.
    """
    try:
        header = read_header(data)
        tensors = load(data)
    except KeyError as error:  # of the library's own table
        problem = f"torch has no type {error.args[0]}"
        raise VectorFileError(source, [f"not a sound safetensors file: {problem}"]) from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise VectorFileError(source, [f"not a sound safetensors file: {error}"]) from error
    if "schema" not in header:
        raise VectorFileError(
            source, [f"not a steering vector: its metadata name no schema (expected {SCHEMA})"]
        )
    if (size := metadata_bytes(header)) > MAX_METADATA_BYTES:
        raise VectorFileError(
            source, [f"its metadata have {size} bytes; at most {MAX_METADATA_BYTES} are kept"]
        )
    problems: list[str] = []
    metadata = _metadata(header, problems)
    problems += tensor_problems(tensors, metadata)
    if problems or metadata is None:
        raise VectorFileError(source, problems)
    vector = vector_of(tensors, metadata, hashlib.sha256(data).hexdigest())
    return dataclasses.replace(vector, metadata_bytes=size)


def _metadata(texts: dict[str, str], problems: list[str]) -> VectorMetadata | None:
    values: dict[str, Any] = {}
    for key, text in texts.items():
        try:
            value, twice = unique_json(text)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested too deeply
            problems.append(f"metadata {key!r} is not JSON")
            continue
        if twice:
            problems.append(f"metadata {key!r} has {listed(twice)} more than once")
        values[key] = value
    if crowded := [*_crowded(values)]:
        problems += crowded
        return None
    try:
        return VectorMetadata.model_validate(values)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            where = ".".join(map(str, fault["loc"]))
            problems.append(f"metadata {where!r}: {fault['msg']}")
        return None


def _crowded(values: dict[str, Any]) -> Iterator[str]:
    # Every entry that is wrong is told, so their number is judged before.
    for where, entries in (("", values), *values.items()):
        if isinstance(entries, dict) and len(entries) > MAX_METADATA_ENTRIES:
            name = f"metadata {where!r}" if where else "metadata"
            yield f"{name}: {len(entries)} entries; at most {MAX_METADATA_ENTRIES} are allowed"
