"""From a finished run to vector files: record, make candidates, choose on validation problems, write."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import load_vector, save_vector
from steering_engine.vectors.schema import HeldOutLift
from steering_pts.ledger import LedgerReader
from steering_pts.progress import RunProgress
from steering_pts.vectors.building import METHODS, Candidate, Provenance, VectorMaker, to_vector
from steering_pts.vectors.events import EventGroup, events_of_run, group_events
from steering_pts.vectors.recording import record
from steering_pts.vectors.selection import Validation, choose

_MOST_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """How vectors are made.

    Attributes:
        min_events: A group of alike decisions needs this many.
        methods: Which methods compete.
        blocks: Which blocks compete; empty takes all of a small model, or evenly spaced ones of a large model.
        licence: SPDX identifier written into the files.
    """

    min_events: int = 4
    methods: tuple[str, ...] = METHODS
    blocks: tuple[int, ...] = ()
    licence: str = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class MadeVector:
    """A vector file that was written; `lift` is None when there were no validation problems."""

    name: str
    path: Path
    method: str
    block: int
    strength: float
    events: int
    min_match: int
    lift: HeldOutLift | None


@dataclass(frozen=True, slots=True)
class VectorReport:
    """What became of a run's pivots: the files, and one sentence for everything that was left out."""

    vectors: tuple[MadeVector, ...]
    left_out: tuple[str, ...]


def make_vectors(
    ledger: LedgerReader,
    validation: Validation,
    folder: Path,
    options: VectorOptions,
    progress: RunProgress,
    name_of: Callable[[EventGroup, int], str] = lambda _group, index: f"pivot-{index + 1}",
) -> VectorReport:
    """Makes the vectors of a run; those that were made of it before and are not made again are removed.

    With validation problems, a group's method, block and strength are those with the largest lift there, and a group
    without a certain lift gets no file. Without them, the paired difference at the middle block is written as it is.

    Args:
        ledger: A finished run.
        validation: Measures candidates; its problems may be none.
        folder: Where the vector files and the recorded activations go.
        options: How vectors are made.
        progress: Shows how far it is.
        name_of: Names a group's vector from the group and its index.
    """
    loaded = validation.model.loaded
    events = events_of_run(ledger)
    tokenizer = loaded.tokenizer
    groups, left_out = group_events(events, options.min_events, lambda ids: str(tokenizer.decode(list(ids))))
    if not groups:
        return VectorReport((), tuple(left_out))
    blocks = options.blocks or spread_blocks(loaded.block_count)
    with progress.phase("recording", 3 * len(events)) as advance:
        recording = record(loaded, events, blocks, advance)
    folder.mkdir(parents=True, exist_ok=True)
    recording.save(folder.parent / "activations.safetensors")
    provenance = Provenance(
        run_digest=_run_digest(ledger),
        settings={
            k: v for k, v in ledger.settings().items() if isinstance(v, str | int | float | bool | None)
        },
        licence=options.licence,
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )
    index_of = {id(event): index for index, event in enumerate(events)}
    made = []
    for number, group in enumerate(groups):
        name = name_of(group, number)
        maker = VectorMaker(loaded, group, recording, tuple(index_of[id(event)] for event in group.events))
        vector = _make_one(maker, validation, name, folder, options, blocks, provenance, left_out)
        if vector is not None:
            made.append(vector)
    _remove_others(folder, {vector.path for vector in made}, provenance.run_digest)
    return VectorReport(tuple(made), tuple(left_out))


def _remove_others(folder: Path, made: set[Path], run_digest: str) -> None:
    """A server that is pointed at the folder must not load what validation has meanwhile thrown out."""
    for path in set(folder.glob("*.safetensors")) - made:
        with suppress(VectorFileError):  # not one of ours
            if load_vector(path).metadata.source_run_digest == run_digest:
                path.unlink()


def _make_one(
    maker: VectorMaker,
    validation: Validation,
    name: str,
    folder: Path,
    options: VectorOptions,
    blocks: Sequence[int],
    provenance: Provenance,
    left_out: list[str],
) -> MadeVector | None:
    lift: HeldOutLift | None = None
    if validation.problems:
        choice = choose(validation, maker, maker.candidates(options.methods, blocks), name, provenance)
        if choice is None:
            left_out.append(f"{name}: every direction came out as zero")
            return None
        candidate, strength, lift = choice.candidate, choice.strength, choice.lift
        if lift.low95 <= 0:
            left_out.append(
                f"{name} ({len(maker.group.events)} pivots): no certain lift on {lift.problems} validation problems: "
                f"best {lift.lift:+.3f} [{lift.low95:+.3f}, {lift.high95:+.3f}], "
                f"{candidate.method} at block {candidate.block}"
            )
            return None
    else:
        middle = blocks[len(blocks) // 2]
        unvalidated: list[Candidate] = maker.candidates(options.methods[:1], [middle])
        if not unvalidated:
            left_out.append(f"{name}: the direction came out as zero")
            return None
        candidate, strength = unvalidated[0], unvalidated[0].norm
    path = folder / f"{name}.safetensors"
    save_vector(
        path, to_vector(maker, candidate, name, strength, provenance, maker.reliability(candidate), lift)
    )
    return MadeVector(
        name,
        path,
        candidate.method,
        candidate.block,
        strength,
        len(maker.group.events),
        maker.group.min_match,
        lift,
    )


def spread_blocks(block_count: int) -> tuple[int, ...]:
    """All blocks of a small model; of a large one, evenly spaced blocks without the last quarter.

    The last quarter mostly writes the next token, so there a direction carries little beyond that token.
    """
    if block_count <= _MOST_BLOCKS:
        return tuple(range(block_count))
    last = block_count * 3 // 4
    return tuple(sorted({round(i * last / (_MOST_BLOCKS - 1)) for i in range(_MOST_BLOCKS)}))


def _run_digest(ledger: LedgerReader) -> str:
    digest = hashlib.sha256()
    for pivot in ledger.pivots():
        digest.update(repr(pivot).encode())
    return digest.hexdigest()
