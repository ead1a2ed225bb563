"""Recording the residual stream around pivots into a safetensors file, row by row.

For every event three rows of resid_post are recorded at every block asked for: the row of the last prefix token (the
step that takes the decision), the row of the better token after it, and that of the worse one; and, where the run has
one, the row of a matched step at which nothing is decided.

The file's header is written first, for all sizes are known before, and then every row is written to its place in one
file of its final size. So memory never holds more than a forward's rows, nothing has to be joined at the end, and what
is on the disk already stays there: a journal of one byte for every batch done says where to go on. The batches are
fixed by what is recorded and never by what is left, so a recording that was interrupted ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open

from steering_engine.loading import DTYPES, LoadedModel, weights_digest
from steering_pts.errors import RecordingError
from steering_pts.ledger.lock import WriterLock
from steering_pts.vectors.events import PivotEvent
from steering_pts.vectors.matching import QuietPlace
from steering_pts.vectors.reading import MEMORY_BYTES, Reader, Reading, Remote, batches_of

SCHEMA = "steering.activations/1"
Place = Literal["prefix", "chosen", "rejected", "matched"]
PLACES: tuple[Place, ...] = get_args(Place)
_FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """How states are recorded.

    Attributes:
        dtype: What they are stored as: float32, float16 or bfloat16.
        memory_bytes: What the activations of a forward may take.
        remote: Where the forwards run.
    """

    dtype: str = "float32"
    memory_bytes: int = MEMORY_BYTES
    remote: Remote = False

    def __post_init__(self) -> None:
        problems = []
        if self.dtype not in DTYPES:
            problems.append(f"unknown dtype {self.dtype!r} for recording; expected {', '.join(DTYPES)}")
        if self.memory_bytes < 1:
            problems.append(f"memory for a forward is {self.memory_bytes} bytes; expected at least 1")
        if problems:
            raise RecordingError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded states in their file.

    Attributes:
        path: The file.
        blocks: Blocks recorded, ascending.
        matched: For each row of `matched` states the index of the event that it is matched to.
    """

    path: Path
    blocks: tuple[int, ...]
    matched: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> Recording:
        """A finished recording.

        Raises:
            RecordingError: The file is not there, damaged, or something else.
        """
        with _opened(path) as file:
            if (file.metadata() or {}).get("schema") != SCHEMA:
                raise RecordingError(f"{path} holds no recorded states (expected the schema {SCHEMA})")
            blocks = sorted({int(name.split(".")[1]) for name in file.keys() if name.startswith("resid.")})  # noqa: SIM118 -- no dictionary
            return cls(path, tuple(blocks), tuple(file.get_tensor("matched.event").tolist()))

    def states(self, place: Place, block: int, rows: Sequence[int] | None = None) -> torch.Tensor:
        """States of a place at a block, `[rows, hidden]` float32; all rows if none are named.

        Raises:
            RecordingError: The file can't be read, or the block was not recorded.
        """
        with _opened(self.path) as file:
            if block not in self.blocks:
                raise RecordingError(f"{self.path}: block {block} was not recorded, {list(self.blocks)} were")
            states: torch.Tensor = file.get_tensor(f"resid.{block}.{place}")
        return (states if rows is None else states[list(rows)]).float()

    def residual_norm(self, block: int) -> float:
        """Mean norm of the residual stream at the decisions' rows."""
        return float(self.states("prefix", block).double().norm(dim=-1).mean())


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise RecordingError(f"{path} can't be read: {error}") from error


def record(
    loaded: LoadedModel,
    events: Sequence[PivotEvent],
    matched: Sequence[QuietPlace | None],
    blocks: Sequence[int],
    path: Path,
    options: RecordingOptions | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Recording:
    """Records the states of all events, or goes on with a recording that was interrupted.

    A finished recording of the same model, events, blocks and options is taken as it is.

    Args:
        loaded: The model.
        events: The decisions.
        matched: For each event a place where nothing is decided, or None (`matching.matched_places`).
        blocks: Which blocks.
        path: The file; beside it stand the unfinished one and its journal until it is done.
        options: How.
        on_done: Hears the tokens of every sequence that is done, also of those that were done before.

    Raises:
        RecordingError: The file can't be written, or a forward elsewhere failed.
        LedgerLockedError: Another process is recording to the file.
    """
    options = options or RecordingOptions()
    plan = _Plan.of(loaded, events, matched, sorted(set(blocks)), options)
    lock = WriterLock(path)
    try:
        file = _RowFile(path, plan.header, plan.total_bytes)
        done = len(plan.batches) if file.is_finished() else file.begin()
        reader = Reader(loaded, options.remote) if done < len(plan.batches) else None
        for number, batch in enumerate(plan.batches):
            if reader is not None and number >= done:
                states = reader.read([plan.readings[index] for index in batch], plan.blocks)
                file.write(plan.rows_of(batch, states))
            if on_done is not None:
                for index in batch:
                    on_done(len(plan.readings[index].ids))
        file.finish()
    except OSError as error:
        raise RecordingError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        lock.release()
    return Recording.open(path)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is read, where each row goes, and the header of the file that says so.

    Attributes:
        readings: Sequences with the rows that are read off them.
        targets: For each row of each reading the place and the index there.
        batches: Readings of each forward.
        blocks: Blocks, ascending.
        dtype: What is stored.
        header: The file's first bytes, up to the states.
        offsets: Where the states of a block and place begin in the file.
        total_bytes: Size of the file.
    """

    readings: list[Reading]
    targets: list[list[tuple[Place, int]]]
    batches: list[list[int]]
    blocks: list[int]
    dtype: torch.dtype
    header: bytes
    offsets: dict[tuple[int, Place], int]
    total_bytes: int

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        events: Sequence[PivotEvent],
        matched: Sequence[QuietPlace | None],
        blocks: list[int],
        options: RecordingOptions,
    ) -> _Plan:
        readings: list[Reading] = []
        targets: list[list[tuple[Place, int]]] = []
        quiet = [(index, place) for index, place in enumerate(matched) if place is not None]
        for index, event in enumerate(events):
            # Attention is causal, so the prefix's row is the same with a token behind it.
            last = len(event.prefix_ids)
            readings.append(Reading((*event.prefix_ids, event.chosen_id), (last - 1, last)))
            targets.append([("prefix", index), ("chosen", index)])
            readings.append(Reading((*event.prefix_ids, event.rejected_id), (last,)))
            targets.append([("rejected", index)])
        for number, (_, place) in enumerate(quiet):
            readings.append(Reading.last(place.prefix_ids))
            targets.append([("matched", number)])
        batches = batches_of([len(one.ids) for one in readings], loaded, options.memory_bytes)
        dtype = DTYPES[options.dtype]
        sizes = dict.fromkeys(PLACES, len(events)) | {"matched": len(quiet)}
        index_of_event = torch.tensor([index for index, _ in quiet], dtype=torch.int64)
        position = torch.tensor([place.position for _, place in quiet], dtype=torch.int64)
        digest = _digest(loaded, readings, batches, blocks, options)
        metadata = {
            "schema": SCHEMA,
            "hook_point": "resid_post",
            "model_id": loaded.source,
            "model_config_digest": loaded.config_digest,
            "plan": digest,
        }
        # Wider types first, so that every tensor begins at a multiple of its width.
        entries: dict[str, tuple[str, list[int], int]] = {
            "matched.event": ("I64", [len(quiet)], 8 * len(quiet)),
            "matched.position": ("I64", [len(quiet)], 8 * len(quiet)),
        }
        for block in blocks:
            for at, count in sizes.items():
                shape = [count, loaded.hidden_size]
                size = count * loaded.hidden_size * dtype.itemsize
                entries[f"resid.{block}.{at}"] = (_FORMATS[options.dtype], shape, size)
        head, starts, total = _layout(metadata, entries)
        return cls(
            readings,
            targets,
            batches,
            blocks,
            dtype,
            head + index_of_event.numpy().tobytes() + position.numpy().tobytes(),
            {(block, at): starts[f"resid.{block}.{at}"] for block in blocks for at in PLACES},
            total,
        )

    def rows_of(self, batch: Sequence[int], states: dict[int, torch.Tensor]) -> Iterator[tuple[int, bytes]]:
        """Where each row that a batch gave begins in the file, and its bytes."""
        targets = [target for index in batch for target in self.targets[index]]
        for block, rows in states.items():
            stored = rows.to(self.dtype).contiguous()
            for (place, index), row in zip(targets, stored, strict=True):
                data = row.view(torch.uint8).numpy().tobytes()
                yield self.offsets[block, place] + index * len(data), data


def _layout(
    metadata: dict[str, str], entries: dict[str, tuple[str, list[int], int]]
) -> tuple[bytes, dict[str, int], int]:
    """A safetensors header, where each tensor begins in the file, and the file's size.

    The format: the header's length as 8 bytes, little-endian; the header as JSON; the tensors without gaps, their
    offsets counted from the header's end (https://github.com/huggingface/safetensors, "Format").
    """
    header: dict[str, object] = {"__metadata__": metadata}
    starts: dict[str, int] = {}
    end = 0
    for name, (dtype, shape, size) in entries.items():
        starts[name] = end
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


def _digest(
    loaded: LoadedModel,
    readings: Sequence[Reading],
    batches: Sequence[Sequence[int]],
    blocks: Sequence[int],
    options: RecordingOptions,
) -> str:
    """Names everything that the bits of a recording depend on."""
    digest = hashlib.sha256()
    model = (loaded.config_digest, weights_digest(loaded.model), str(loaded.model.dtype), loaded.device.type)
    digest.update(repr((model, list(blocks), options.dtype, options.remote, list(batches))).encode())
    for reading in readings:
        digest.update(repr(reading).encode())
    return digest.hexdigest()


class _RowFile:
    """A file of known size that is filled in any order, with a journal of what is in it."""

    def __init__(self, path: Path, header: bytes, size: int) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._journal = path.with_name(f".{path.name}.journal")
        self._header = header
        self._size = size

    def is_finished(self) -> bool:
        """Whether the file is there, with this header."""
        return self._is_ours(self._path)

    def begin(self) -> int:
        """Makes the unfinished file, or goes on with one of the same header; says how many batches it holds."""
        if self._is_ours(self._partial) and self._journal.exists():
            return self._journal.stat().st_size
        self._journal.unlink(missing_ok=True)
        with self._partial.open("wb") as file:
            # What does not fit on the disk is known now, and not after hours.
            os.posix_fallocate(file.fileno(), 0, self._size)
            file.write(self._header)
            file.flush()
            os.fsync(file.fileno())
        self._journal.touch()
        return 0

    def write(self, rows: Iterator[tuple[int, bytes]]) -> None:
        """Writes a batch's rows, and then, when they are on the disk, the journal's byte for it."""
        descriptor = os.open(self._partial, os.O_WRONLY)
        try:
            for offset, data in rows:
                os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with self._journal.open("ab") as journal:
            journal.write(b".")

    def finish(self) -> None:
        """The unfinished file takes its place."""
        if not self.is_finished():
            self._partial.replace(self._path)
        self._partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _is_ours(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return path.stat().st_size == self._size and file.read(len(self._header)) == self._header
        except FileNotFoundError:
            return False
