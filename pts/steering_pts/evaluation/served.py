"""Vectors as the server has them, the triggers by which they act, and the random ones that they are compared with."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch

from steering_client.errors import SteeringError
from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import encode_vector, parse_vector, read_vector_file
from steering_engine.vectors.schema import RecommendedTrigger, SteeringVector
from steering_pts.concurrency import map_concurrently
from steering_pts.credentials import Credentials
from steering_pts.errors import EndpointError, EvaluationError
from steering_pts.seeds import derive_seed
from steering_spec import ContextTrigger, ProbeTrigger, SimilarityTrigger, Trigger, VectorRef
from steering_spec.limits import MAX_STRENGTH
from steering_spec.trigger_admission import readable_blocks

TriggerName = Literal["context", "probe", "similarity", "always"]
TRIGGERS: Final[tuple[TriggerName, ...]] = get_args(TriggerName)
_LOADS_AT_ONCE: Final = 8
_UNLOAD_SECONDS: Final = 10.0  # what still uses a vector then goes on with it; it is unloaded all the same
_NAME_CHARACTERS: Final = 50
_DIGEST_CHARACTERS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class ServedVector:
    """A vector of an evaluation.

    Attributes:
        vector: Its content.
        data: The bytes of its file.
        sha256: Their digest.
        trigger: When it acts; None is always.
        strength: Multiplies its calibrated strength.
    """

    vector: SteeringVector
    data: bytes
    sha256: str
    trigger: Trigger | None
    strength: float = 1.0

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.vector.metadata.name

    @property
    def id(self) -> str:
        """What it is called on the server: its content is in the name, so that it is never somebody else's."""
        return f"{self.name[:_NAME_CHARACTERS]}-{self.sha256[:_DIGEST_CHARACTERS]}"

    @property
    def reference(self) -> str:
        """What a rule names: the id, pinned to the file."""
        return VectorRef(self.id, self.sha256).name

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that are steered, ascending."""
        return tuple(sorted(self.vector.directions))

    @property
    def trigger_name(self) -> TriggerName:
        """What kind of trigger it has."""
        match self.trigger:
            case ContextTrigger():
                return "context"
            case ProbeTrigger():
                return "probe"
            case SimilarityTrigger():
                return "similarity"
            case _:
                return "always"


def read_vectors(
    paths: Sequence[Path], trigger: TriggerName | None = None, strength: float = 1.0
) -> tuple[list[ServedVector], list[str]]:
    """Reads vector files, and decides by which trigger each acts.

    Args:
        paths: Vector files, and folders of them.
        trigger: The trigger of all; None takes what the file recommends, or else its contexts, or else none.
        strength: Multiplies the calibrated strengths, as rules of a request do.

    Returns:
        The vectors, and a sentence for each that acts at every step because nothing in its file says where.

    Raises:
        EvaluationError: Files can't be read, or lack what the trigger needs, or no rule may have that strength; all of
            it at once.
    """
    faults: list[str] = []
    if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:  # nor is NaN
        faults.append(f"strength is {strength}; expected a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}")
    warnings: list[str] = []
    vectors: dict[str, ServedVector] = {}
    for path in _files(paths, faults):
        try:
            data = read_vector_file(path)
            vector = parse_vector(data, str(path))
        except VectorFileError as error:
            faults.append(f"{path}: " + "; ".join(error.problems))
            continue
        except OSError as error:
            faults.append(f"{path} can't be read: {error.strerror}")
            continue
        try:
            when, warning = trigger_of(vector, trigger)
        except ValueError as error:
            faults.append(f"{path}: {error}")
            continue
        warnings += warning
        vectors.setdefault(vector.sha256, ServedVector(vector, data, vector.sha256, when, strength))
    if faults:
        raise EvaluationError("; ".join(faults))
    return list(vectors.values()), warnings


def _files(paths: Sequence[Path], faults: list[str]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not found:
            faults.append(f"{path}: no vector files (*.safetensors) are in this folder")
        files += found
    return files


def trigger_of(vector: SteeringVector, asked: TriggerName | None) -> tuple[Trigger | None, list[str]]:
    """When a vector acts, and a sentence where it acts at every step only because nothing says when.

    Args:
        vector: Its file's content.
        asked: The kind of trigger that is asked for; None takes the one that the file recommends, or else its contexts.

    Raises:
        ValueError: The file lacks what the trigger needs.
    """
    recommended = vector.metadata.recommended_trigger
    if recommended is not None and asked in (None, recommended.kind):
        return _recommended(recommended), []
    if asked is None and not vector.contexts:
        name = vector.metadata.name
        return None, [f"{name} has no recorded contexts and recommends no trigger, so it acts at every step"]
    if fault := _lacking(vector, asked):
        raise ValueError(fault)
    match asked:
        case "probe":
            return ProbeTrigger(), []
        case "similarity":
            return SimilarityTrigger(), []
        case "always":
            return None, []
        case _:
            return ContextTrigger(), []


def _recommended(trigger: RecommendedTrigger) -> Trigger | None:
    match trigger.kind:
        case "context":
            return ContextTrigger(min_match_tokens=trigger.min_match)
        case "probe":
            return ProbeTrigger(layer=trigger.block, threshold=trigger.threshold)
        case "similarity":
            return SimilarityTrigger(layer=trigger.block, min_cosine=trigger.min_cosine)
        case "always":
            return None


def _lacking(vector: SteeringVector, asked: TriggerName | None) -> str | None:
    """What a file lacks for a trigger."""
    metadata, first = vector.metadata, min(vector.directions)
    if asked == "context" and not vector.contexts:
        return "no contexts are recorded in it, so it has no context trigger"
    probes = {block: metadata.probe_threshold.get(block) for block in vector.probes}
    if asked == "probe" and not readable_blocks(probes, first, None):
        return f"it has no probe with a threshold at or before block {first}, the first that it steers"
    centroids = {block: metadata.centroid_min_cosine.get(block) for block in vector.centroids}
    if asked == "similarity" and not readable_blocks(centroids, first, None):
        return f"it has no centroids with a least cosine at or before block {first}, the first that it steers"
    return None


def randomised(served: ServedVector, number: int, seed: int) -> ServedVector:
    """A vector with random directions, and everything else (blocks, norms, triggers) of another one.

    Args:
        served: The other one.
        number: Which of the random ones it is.
        seed: Of the evaluation; the directions depend on it, on the number, and on the other's name and directions.
    """
    content = hashlib.sha256()
    for block in served.blocks:
        content.update(served.vector.directions[block].numpy().tobytes())
    # Not the digest of the file, which says when it was made.
    origin = f"{served.name} {content.hexdigest()}"
    generator = torch.Generator().manual_seed(derive_seed(seed, "random vector", number, origin))
    directions = {}
    for block in served.blocks:
        random = torch.randn(len(served.vector.directions[block]), generator=generator)
        directions[block] = random / random.norm()
    name = f"random-{number}-{served.name}"[:63].rstrip("-")
    update: dict[str, Any] = {
        "name": name,
        "method": "random",
        "description": f"random directions with the norms and triggers of {served.name}",
        "held_out_lift": None,
        "split_half_cosine": {},
    }
    vector = dataclasses.replace(
        served.vector,
        directions=directions,
        metadata=served.vector.metadata.model_copy(update=update),
    )
    data = encode_vector(vector)
    return dataclasses.replace(served, vector=vector, data=data, sha256=hashlib.sha256(data).hexdigest())


@contextmanager
def loaded_into(
    targets: Sequence[str], vectors: Sequence[ServedVector], credentials: Credentials
) -> Iterator[None]:
    """Has vectors on servers for as long as they are needed; those that a server has already are left as they are.

    However the block ends, what was loaded for it is unloaded.

    Raises:
        EndpointError: A server refuses some, all of which are named, or can't be reached.
    """
    with ExitStack() as unloading:
        for target in targets:
            missing = asyncio.run(_missing(target, vectors, credentials))
            unloading.callback(_run_unload, target, missing, credentials)
            if faults := sorted(asyncio.run(_faults_of_loading(target, missing, credentials))):
                raise EndpointError(f"{target} does not load " + "; ".join(faults))
        yield


def _run_unload(target: str, vectors: Sequence[ServedVector], credentials: Credentials) -> None:
    asyncio.run(_unload(target, vectors, credentials))


async def _missing(
    target: str, vectors: Sequence[ServedVector], credentials: Credentials
) -> list[ServedVector]:
    """Those that a server has not."""
    async with credentials.connect(target) as client:
        try:
            present = {info.pinned_name for info in await client.list_vectors(all_versions=True)}
        except SteeringError as error:
            raise EndpointError(f"{target} does not tell its vectors: {error}") from error
    return [one for one in vectors if one.reference not in present]


async def _faults_of_loading(
    target: str, vectors: Sequence[ServedVector], credentials: Credentials
) -> list[str]:
    async with credentials.connect(target) as client:

        async def load(one: ServedVector) -> str | None:
            try:
                await client.load_vector(one.id, file=one.data, sha256=one.sha256)
            except SteeringError as error:
                return f"{one.name}: {error}"
            return None

        faults = await map_concurrently(load, vectors, _LOADS_AT_ONCE)
    return [fault for fault in faults if fault is not None]


async def _unload(target: str, vectors: Sequence[ServedVector], credentials: Credentials) -> None:
    async with credentials.connect(target) as client:

        async def unload(one: ServedVector) -> None:
            # It may never have been loaded, or the server may be gone: then there is nothing left to do.
            with suppress(SteeringError):
                await client.unload_vector(one.reference, timeout=_UNLOAD_SECONDS)

        await map_concurrently(unload, vectors, _LOADS_AT_ONCE)
