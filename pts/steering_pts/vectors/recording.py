"""Recording the residual stream around pivots into a safetensors file, row by row.

For every event three rows of resid_post are recorded at every block asked for: the row of the last prefix token (the
step that takes the decision), the row of the better token after it, and that of the worse one; and, where the run has
one, the row of a matched step at which nothing is decided.

Memory never holds more than the rows of a forward (`row_file` says how). The forwards are fixed by what is recorded
and never by what is left, so a recording that was interrupted ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open

from steering_engine.alias import shareable_name
from steering_engine.loading import DTYPES, LoadedModel, weights_digest
from steering_pts.errors import RecordingError
from steering_pts.ledger.lock import WriterLock
from steering_pts.vectors.events import PivotEvent
from steering_pts.vectors.matching import QuietPlace
from steering_pts.vectors.reading import MEMORY_BYTES, Reader, Reading, Remote, batches_of
from steering_pts.vectors.row_file import Entry, RowFile, layout

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
        plan: SHA-256 of everything that the states' bits depend on.
    """

    path: Path
    blocks: tuple[int, ...]
    matched: tuple[int, ...]
    plan: str

    @classmethod
    def open(cls, path: Path) -> Recording:
        """A finished recording.

        Raises:
            RecordingError: The file is not there, damaged, or something else.
        """
        with _opened(path) as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                raise RecordingError(f"{path} holds no recorded states (expected the schema {SCHEMA})")
            blocks = sorted({int(name.split(".")[1]) for name in file.keys() if name.startswith("resid.")})  # noqa: SIM118 -- no dictionary
            matched = tuple(file.get_tensor("matched.event").tolist())
            return cls(path, tuple(blocks), matched, metadata.get("plan", ""))

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
def _opened(path: Path) -> Iterator[Any]:  # the library's class has no types
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
        file = RowFile(path, plan.header, plan.total_bytes)
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
            "model_id": shareable_name(loaded.source),
            "model_config_digest": loaded.config_digest,
            "plan": digest,
        }
        # Wider types first, so that every tensor begins at a multiple of its width.
        entries: dict[str, Entry] = {
            "matched.event": ("I64", [len(quiet)], 8 * len(quiet)),
            "matched.position": ("I64", [len(quiet)], 8 * len(quiet)),
        }
        for block in blocks:
            for at, count in sizes.items():
                shape = [count, loaded.hidden_size]
                size = count * loaded.hidden_size * dtype.itemsize
                entries[f"resid.{block}.{at}"] = (_FORMATS[options.dtype], shape, size)
        head, starts, total = layout(metadata, entries)
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
