"""The vector files of a run, as rows of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import HeldOutLift, SteeringVector
from steering_pts.report.heat import trigger_name

_MOST_VECTORS: Final = 100


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A direction of a vector; lengths in residual units."""

    block: int
    strength: float
    relative: float
    reliability: float | None


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A vector file; `triggers` are the kinds of trigger that it has data for."""

    name: str
    method: str
    events: int
    blocks: tuple[BlockRow, ...]
    triggers: tuple[str, ...]
    recommended: str | None
    lift: HeldOutLift | None
    licence: str
    sha256: str


def vector_rows(folder: Path) -> tuple[list[VectorRow], list[str], int]:
    """The vectors in a folder, what is wrong with files that can't be read, and how many files are not shown."""
    rows, faults = [], []
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths[:_MOST_VECTORS]:
        try:
            rows.append(_row(load_vector(path)))
        except VectorFileError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{path.name}: can't be read: {error.strerror}")
    return rows, faults, max(len(paths) - _MOST_VECTORS, 0)


def _row(vector: SteeringVector) -> VectorRow:
    metadata = vector.metadata
    return VectorRow(
        name=metadata.name,
        method=metadata.method,
        events=metadata.event_count,
        blocks=tuple(
            BlockRow(
                block=block,
                strength=metadata.calibrated_strength[block],
                relative=metadata.calibrated_strength[block] / metadata.residual_norm[block],
                reliability=metadata.split_half_cosine.get(block),
            )
            for block in sorted(vector.directions)
        ),
        triggers=tuple(trigger_kinds(vector)),
        recommended=recommended_trigger(vector),
        lift=metadata.held_out_lift,
        licence=metadata.licence,
        sha256=vector.sha256,
    )


def trigger_kinds(vector: SteeringVector) -> list[str]:
    """What says when the vector acts, with its quality where the file knows it."""
    kinds = []
    if vector.contexts:
        kinds.append(f"{len(vector.contexts):,} context{'s' * (len(vector.contexts) != 1)}")
    for block in sorted(vector.probes):
        auc = vector.metadata.probe_auc.get(block)
        kinds.append(f"probe at block {block}" + (f" (AUC {auc:.3f})" if auc is not None else ""))
    for block, centroids in sorted(vector.centroids.items()):
        kinds.append(f"{len(centroids):,} centroid{'s' * (len(centroids) != 1)} at block {block}")
    return kinds


def recommended_trigger(vector: SteeringVector) -> str | None:
    """The trigger that the file recommends, in words; None where it recommends none."""
    recommended = getattr(vector.metadata, "recommended_trigger", None)
    if recommended is None:
        return None
    return trigger_name(recommended if isinstance(recommended, str) else recommended.model_dump())
