"""From a finished run to candidate vectors: record, group, make every method's directions, write."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from steering_engine.errors import VectorFileError
from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import load_vector, save_vector
from steering_pts.errors import RecordingError
from steering_pts.ledger import LedgerReader
from steering_pts.progress import RunProgress
from steering_pts.vectors.building import Provenance, VectorMaker, at_block, triggers_of
from steering_pts.vectors.candidates import Candidates, write_group, write_index
from steering_pts.vectors.contexts import with_contexts
from steering_pts.vectors.events import EventGroup, PivotEvent, events_of_run
from steering_pts.vectors.grouping import Grouping, group_by_clusters, group_by_tokens
from steering_pts.vectors.matching import QuietPlace, matched_places, quiet_places
from steering_pts.vectors.options import VectorOptions
from steering_pts.vectors.recording import Recording, record

NameOf = Callable[[EventGroup, int], str]
"""Names a group from the group and its index."""

_TAU = 0.2  # of runs whose settings don't say
_GROUPING_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class MadeVector:
    """A vector file that was written as a method made it, without validation problems to choose on."""

    name: str
    path: Path
    method: str
    block: int
    strength: float
    events: int
    min_match: int


@dataclass(frozen=True, slots=True)
class VectorReport:
    """What became of a run's pivots: the files, and one sentence for everything that was left out."""

    vectors: tuple[MadeVector, ...]
    left_out: tuple[str, ...]
    candidates: tuple[Candidates, ...] = ()


def numbered(_group: EventGroup, index: int) -> str:
    """The name of a group of which nothing is known."""
    return f"pivot-{index + 1}"


def make_vectors(
    ledger: LedgerReader,
    loaded: LoadedModel,
    folder: Path,
    options: VectorOptions,
    progress: RunProgress,
    name_of: NameOf = numbered,
) -> VectorReport:
    """Makes the candidates of a run, and of each group a vector that is not calibrated.

    That is its first method's direction at the middle block, as long as the method made it. Vectors of the run that
    were made before and are no more are removed.

    Args:
        ledger: A finished run.
        loaded: Its model.
        folder: Where the vector files go; the candidates and the recorded states go beside it.
        options: How vectors are made.
        progress: Shows how far it is.
        name_of: Names a group's vector from the group and its index.

    Raises:
        SearchError: The model does not have a block that was asked for.
        RecordingError: States can't be recorded, or files not be written.
        LedgerLockedError: Another process is at it.
    """
    groups, left_out, run_digest = make_candidates(ledger, loaded, folder.parent, options, progress, name_of)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = [_write_first(candidates, folder) for candidates in groups]
        _remove_others(folder, {vector.path for vector in made}, run_digest)
    except OSError as error:
        raise _unwritable(error, folder) from error
    return VectorReport(tuple(made), tuple(left_out), tuple(groups))


def make_candidates(
    ledger: LedgerReader,
    loaded: LoadedModel,
    run: Path,
    options: VectorOptions,
    progress: RunProgress,
    name_of: NameOf = numbered,
) -> tuple[list[Candidates], list[str], str]:
    """Records a run's pivots and writes a vector file for every group and method to `run/candidates`.

    Args:
        ledger: A finished run.
        loaded: Its model.
        run: The run's folder.
        options: How vectors are made.
        progress: Shows how far it is.
        name_of: Names a group from the group and its index.

    Returns:
        The groups that have a vector, one sentence for everything that was left out, and the run's digest.
    """
    blocks = options.blocks_of(loaded.block_count)
    run_digest = _run_digest(ledger)
    events = events_of_run(ledger)
    if not events:
        return [], ["the run confirmed no pivots, so there is nothing to make vectors of"], run_digest
    tau = ledger.settings().get("search.tau")
    quiet = list(quiet_places(ledger, float(tau) if isinstance(tau, int | float) else _TAU))
    matched = matched_places(events, quiet)
    recording = _record(loaded, events, matched, blocks, run, options, progress)
    grouping = _group(events, recording, blocks, options)
    groups = with_contexts(grouping.groups, quiet, grouping.rest)
    left_out = list(grouping.left_out)
    provenance = Provenance(
        run_digest=run_digest,
        settings={
            k: v for k, v in ledger.settings().items() if isinstance(v, str | int | float | bool | None)
        },
        licence=options.licence,
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )
    index_of = {id(event): index for index, event in enumerate(events)}
    written = []
    folder = run / "candidates"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with progress.phase("candidates", len(groups) * len(options.methods)) as advance:
            all_triggers = triggers_of(ledger, loaded, groups, blocks)
            for number, (group, triggers) in enumerate(zip(groups, all_triggers, strict=True)):
                rows = tuple(index_of[id(event)] for event in group.events)
                maker = VectorMaker(loaded, group, recording, rows, triggers)
                name = name_of(group, number)
                candidates, failed = write_group(
                    folder, maker, name, options.methods, blocks, provenance, advance
                )
                left_out += failed
                if candidates.files:
                    written.append(candidates)
        write_index(folder, written, run_digest)
    except OSError as error:
        raise _unwritable(error, folder) from error
    return written, left_out, run_digest


def _record(
    loaded: LoadedModel,
    events: Sequence[PivotEvent],
    matched: Sequence[QuietPlace | None],
    blocks: Sequence[int],
    run: Path,
    options: VectorOptions,
    progress: RunProgress,
) -> Recording:
    total = 2 * len(events) + sum(place is not None for place in matched)
    with progress.phase("recording", total) as advance:
        return record(
            loaded, events, matched, blocks, run / "activations.safetensors", options.recording, advance
        )


def _group(
    events: Sequence[PivotEvent], recording: Recording, blocks: Sequence[int], options: VectorOptions
) -> Grouping:
    if options.group_by == "tokens":
        return group_by_tokens(events, options.min_events)
    # A few, spread over them: one alone may happen to show little of what differs, and all may be too many to hold.
    count = min(len(blocks), _GROUPING_BLOCKS)
    some = [blocks[round(i * (len(blocks) - 1) / max(1, count - 1))] for i in range(count)]
    prefix, chosen, rejected = (
        torch.stack([recording.states(place, block) for block in some], dim=1).numpy()
        for place in ("prefix", "chosen", "rejected")
    )
    return group_by_clusters(events, prefix, chosen - rejected, options.min_events)


def _write_first(candidates: Candidates, folder: Path) -> MadeVector:
    method = next(iter(candidates.files))
    strengths = candidates.metadata[method].calibrated_strength
    block = sorted(strengths)[len(strengths) // 2]
    path = folder / f"{candidates.name}.safetensors"
    save_vector(path, at_block(candidates.load(method), block, strengths[block], candidates.name))
    return MadeVector(
        candidates.name, path, method, block, strengths[block], candidates.events, candidates.min_match
    )


def _remove_others(folder: Path, made: set[Path], run_digest: str) -> None:
    """A server that is pointed at the folder must not load what validation has meanwhile thrown out."""
    for path in set(folder.glob("*.safetensors")) - made:
        with suppress(VectorFileError):  # not one of ours
            if load_vector(path).metadata.source_run_digest == run_digest:
                path.unlink()


def _run_digest(ledger: LedgerReader) -> str:
    digest = hashlib.sha256()
    for pivot in ledger.pivots():
        digest.update(repr(pivot).encode())
    return digest.hexdigest()


def _unwritable(error: OSError, folder: Path) -> RecordingError:
    return RecordingError(f"{error.filename or folder} can't be written: {error.strerror or error}")
