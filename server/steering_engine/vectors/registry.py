"""The registry of loaded vectors: names, digests, and the slots of their rows in the resident table."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from steering_engine.errors import (
    VectorExistsError,
    VectorFileError,
    VectorMismatchError,
    VectorTableFullError,
)
from steering_engine.loading import LoadedModel
from steering_engine.steering.contexts import ContextIndex
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.file import parse_vector
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    InvalidRequestError,
    VectorCentroids,
    VectorFacts,
    VectorInfo,
    VectorLayer,
    VectorProbe,
    VectorRef,
    Violation,
    limits,
)


@dataclass(frozen=True, slots=True)
class RegisteredProbe:
    """A loaded probe at one block.

    Attributes:
        slot: Slot of its weight in the block's table.
        bias: Added to the product of weight and residual stream.
        threshold: Least probability that fires, as calibrated; None where the file has none.
        auc: Area under the curve; None where the file has none.
    """

    slot: int
    bias: float
    threshold: float | None
    auc: float | None


@dataclass(frozen=True, slots=True)
class RegisteredCentroids:
    """Loaded centroids at one block.

    Attributes:
        slots: Slots of the centroids in the block's table, where they have unit length.
        min_cosine: Least cosine that fires, as calibrated; None where the file has none.
    """

    slots: tuple[int, ...]
    min_cosine: float | None


@dataclass(frozen=True, slots=True, eq=False)
class RegisteredVector:
    """A loaded vector.

    Attributes:
        id: The name without `vectors/`.
        vector: The file's content.
        slots: Slot of the direction in the table of each block.
        contexts: Its contexts, ready to match.
        probes: Its probes by block, ascending.
        centroids: Its centroids by block, ascending.
    """

    id: str
    vector: SteeringVector
    slots: dict[int, int]
    contexts: ContextIndex
    probes: dict[int, RegisteredProbe]
    centroids: dict[int, RegisteredCentroids]

    @property
    def facts(self) -> VectorFacts:
        """What admission needs to know."""
        return VectorFacts(
            sha256=self.vector.sha256,
            layers=tuple(sorted(self.vector.directions)),
            context_count=len(self.vector.contexts),
            probes={block: probe.threshold for block, probe in self.probes.items()},
            centroids={block: centroids.min_cosine for block, centroids in self.centroids.items()},
        )

    @property
    def info(self) -> VectorInfo:
        """What ListVectors tells."""
        metadata = self.vector.metadata
        told = {
            "name",
            "description",
            "model_id",
            "hidden_size",
            "method",
            "calibrated_strength",
            "residual_norm",
            "probe_threshold",
            "probe_auc",
            "centroid_min_cosine",
        }
        rest = metadata.model_dump(mode="json", by_alias=True, exclude=told)
        return VectorInfo(
            name=f"vectors/{self.id}",
            sha256=self.vector.sha256,
            description=metadata.description,
            model=metadata.model_id,
            layers=tuple(
                VectorLayer(block, metadata.calibrated_strength[block], metadata.residual_norm[block])
                for block in sorted(self.vector.directions)
            ),
            hidden_size=metadata.hidden_size,
            method=metadata.method,
            context_count=len(self.vector.contexts),
            min_match_tokens=metadata.context_min_match,
            metadata={key: json.dumps(value, sort_keys=True) for key, value in rest.items()},
            probes=tuple(
                VectorProbe(block, probe.threshold, probe.auc) for block, probe in self.probes.items()
            ),
            centroids=tuple(
                VectorCentroids(block, len(centroids.slots), centroids.min_cosine)
                for block, centroids in self.centroids.items()
            ),
        )


class VectorRegistry:
    """Vectors by id; loading is atomic, and safe from any thread."""

    def __init__(self, loaded: LoadedModel, table: DirectionTable) -> None:
        self._loaded = loaded
        self._table = table
        self._vectors: dict[str, RegisteredVector] = {}
        self._lock = threading.Lock()

    def infos(self) -> list[VectorInfo]:
        """Descriptions of all vectors, ordered by name."""
        return [self._vectors[key].info for key in sorted(self._vectors)]

    def find(self, ref: VectorRef) -> RegisteredVector | None:
        """The vector with this id, whatever the pin says."""
        return self._vectors.get(ref.id)

    def facts(self, ref: VectorRef) -> VectorFacts | None:
        """What admission needs to know of the vector with this id."""
        found = self.find(ref)
        return None if found is None else found.facts

    def load(self, name: str, source: Path | bytes, sha256: str | None = None) -> VectorInfo:
        """Loads a vector file under a name; the same file under the same name again changes nothing.

        Args:
            name: `vectors/{id}` or the id alone.
            source: The file, or its bytes.
            sha256: Expected digest, lowercase hex; None checks none.

        Raises:
            InvalidRequestError: The name is malformed.
            VectorFileError: The file is wrong, or has another digest; all problems at once.
            VectorMismatchError: The file was made for another model.
            VectorExistsError: The name is loaded with another file.
            VectorTableFullError: There is no room for the vector; nothing of it is loaded.
            FileNotFoundError: There is no such file.
        """
        try:
            ref = VectorRef.parse(name)
        except ValueError as error:
            raise InvalidRequestError([Violation("name", str(error))]) from error
        if ref.sha256 is not None:
            raise InvalidRequestError(
                [Violation("name", "a name to load has no @{sha256}; use the sha256 field")]
            )
        data, origin = (source, ref.id) if isinstance(source, bytes) else (_read(source), source.name)
        vector = parse_vector(data, origin)
        if sha256 and sha256 != vector.sha256:
            raise VectorFileError(origin, [f"its SHA-256 is {vector.sha256}, not {sha256}"])
        self._check_model(origin, vector)
        with self._lock:
            present = self._vectors.get(ref.id)
            if present is not None:
                if present.vector.sha256 != vector.sha256:
                    raise VectorExistsError(
                        f"vectors/{ref.id} is loaded with the digest {present.vector.sha256}; "
                        "load the other file under another name"
                    )
                return present.info
            registered = _place(ref.id, vector, self._table)
            self._vectors = {**self._vectors, ref.id: registered}
        return registered.info

    def load_directory(self, directory: Path) -> tuple[list[VectorInfo], list[VectorFileError]]:
        """Loads every `*.safetensors` of a directory under its file name; a bad one does not stop the others.

        Files of other kinds that happen to be safetensors (recorded activations) are reported like bad ones.
        """
        infos: list[VectorInfo] = []
        errors: list[VectorFileError] = []
        for path in sorted(directory.glob("*.safetensors")):
            try:
                infos.append(self.load(path.stem, path))
            except VectorFileError as error:
                errors.append(error)
            except (InvalidRequestError, VectorExistsError, VectorTableFullError, OSError) as error:
                errors.append(VectorFileError(path.name, [str(error)]))
        return infos, errors

    def _check_model(self, origin: str, vector: SteeringVector) -> None:
        metadata, loaded = vector.metadata, self._loaded
        problems = []
        if metadata.hidden_size != loaded.hidden_size:
            problems.append(f"its hidden size is {metadata.hidden_size}, the model's {loaded.hidden_size}")
        if metadata.block_count != loaded.block_count:
            problems.append(f"made for {metadata.block_count} blocks, the model has {loaded.block_count}")
        if metadata.model_config_digest != loaded.config_digest:
            problems.append(f"made for the model {metadata.model_id!r} with another configuration")
        if vector.contexts and metadata.tokenizer_digest != loaded.tokenizer_digest:
            problems.append("its contexts were recorded with another tokenizer")
        if problems:
            raise VectorMismatchError(origin, problems)


def _place(vector_id: str, vector: SteeringVector, table: DirectionTable) -> RegisteredVector:
    """Puts the rows of a vector into the table, all or none: by block its direction, its probe, its centroids."""
    contexts = ContextIndex(vector.contexts)  # before rows are taken, which nothing may fail after
    rows: dict[int, list[torch.Tensor]] = {}
    for block, direction in vector.directions.items():
        rows.setdefault(block, []).append(direction)
    for block, probe in vector.probes.items():
        rows.setdefault(block, []).append(probe.weight)
    for block, centroids in vector.centroids.items():
        rows.setdefault(block, []).extend(_unit_rows(centroids))
    placed = table.add_all({block: torch.stack(of_block) for block, of_block in rows.items()})
    left = {block: iter(slots) for block, slots in placed.items()}
    metadata = vector.metadata
    # The same order as above, so that each takes the slots of its own rows.
    slots = {block: next(left[block]) for block in vector.directions}
    probes = {
        block: RegisteredProbe(
            next(left[block]), probe.bias, metadata.probe_threshold.get(block), metadata.probe_auc.get(block)
        )
        for block, probe in sorted(vector.probes.items())
    }
    centroids_of = {
        block: RegisteredCentroids(tuple(left[block]), metadata.centroid_min_cosine.get(block))
        for block in sorted(vector.centroids)
    }
    return RegisteredVector(vector_id, vector, slots, contexts, probes, centroids_of)


def _unit_rows(centroids: torch.Tensor) -> torch.Tensor:
    exact = centroids.double()
    unit: torch.Tensor = exact / exact.norm(dim=1, keepdim=True)
    return unit.float()


def _read(path: Path) -> bytes:
    """The bytes of a vector file; its size is judged before anything is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise VectorFileError(path.name, ["not a regular file"])
    if status.st_size > limits.MAX_VECTOR_FILE_BYTES:
        raise VectorFileError(
            path.name, [f"{status.st_size} bytes; at most {limits.MAX_VECTOR_FILE_BYTES} are allowed"]
        )
    return path.read_bytes()
