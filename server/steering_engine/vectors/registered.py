"""A loaded vector: its file's content, and the slots of its rows in the resident table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from steering_engine.errors import VectorMismatchError
from steering_engine.loading import LoadedModel
from steering_engine.steering.contexts import BYTES_PER_ID, ContextIndex
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.schema import SteeringVector
from steering_spec import VectorCentroids, VectorFacts, VectorInfo, VectorLayer, VectorProbe, VectorRef


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
    def ref(self) -> VectorRef:
        """What names exactly this version."""
        return VectorRef(self.id, self.vector.sha256)

    def slots_by_block(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """All its rows in the table: each block with slots of it; a block may come several times."""
        yield from ((block, (slot,)) for block, slot in self.slots.items())
        yield from ((block, (probe.slot,)) for block, probe in self.probes.items())
        yield from ((block, centroids.slots) for block, centroids in self.centroids.items())

    def describe(self, *, current: bool, running_requests: int) -> VectorInfo:
        """What callers are told of it.

        Args:
            current: Whether its name means this version.
            running_requests: Requests that use it now.
        """
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
            name=VectorRef(self.id).name if current else self.ref.name,
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
            running_requests=running_requests,
            memory_bytes=memory_of(self.vector),
        )


def check_model(origin: str, vector: SteeringVector, loaded: LoadedModel) -> None:
    """Refuses a vector that was made for another model than the loaded one.

    Raises:
        VectorMismatchError: It was; every difference that matters.
    """
    metadata = vector.metadata
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


def memory_of(vector: SteeringVector) -> int:
    """Bytes that a loaded vector takes: tensors as read, the same as rows of the table, contexts to match, metadata."""
    probes = (probe.weight for probe in vector.probes.values())
    tensors = (*vector.directions.values(), *probes, *vector.centroids.values())
    ids = sum(map(len, vector.contexts))
    return 2 * sum(tensor.nbytes for tensor in tensors) + BYTES_PER_ID * ids + vector.metadata_bytes


def place(vector_id: str, vector: SteeringVector, table: DirectionTable) -> RegisteredVector:
    """Puts the rows of a vector into the table, all or none: by block its direction, its probe, its centroids.

    Raises:
        VectorTableFullError: There is no room for all of them; nothing is stored.
    """
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
