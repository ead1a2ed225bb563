"""The files of a calibration: a vector file for each group that is kept, and `calibration.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import load_vector, save_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.results import CalibrationResult, GroupResult
from steering_pts.errors import VectorsError
from steering_pts.ledger.export import write_atomically


def write_vectors(
    result: CalibrationResult, groups: Sequence[CandidateGroup], folder: Path
) -> dict[str, Path]:
    """Writes a vector file for each group that is kept, and removes those of groups that no longer are.

    Only files that were made of the same run are removed: a server that is pointed at the folder must not load what
    calibration has meanwhile thrown out, and nothing else that may be in the folder is ours.

    Returns:
        The files that were written, by group.

    Raises:
        VectorsError: They can't be written.
    """
    written = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one, group in zip(result.groups, groups, strict=True):
            if one.kept:
                path = folder / f"{one.name}.safetensors"
                save_vector(path, calibrated(one, group))
                written[one.name] = path
        origins = {vector.metadata.source_run_digest for group in groups for vector in group.vectors.values()}
        for path in set(folder.glob("*.safetensors")) - set(written.values()):
            with suppress(VectorFileError):  # not one of ours
                if (origin := load_vector(path).metadata.source_run_digest) and origin in origins:
                    path.unlink()
    except OSError as error:
        raise VectorsError(f"{folder} can't be written: {error.strerror}") from error
    return written


def write_result(result: CalibrationResult, path: Path) -> None:
    """Writes `calibration.json` in one step.

    Raises:
        LedgerError: It can't be written.
    """
    write_atomically(path, [json.dumps(result.as_json(), indent=2, allow_nan=False)])


def calibrated(result: GroupResult, group: CandidateGroup) -> SteeringVector:
    """The vector of a group: one direction, whose strength 1 is the chosen one, and the data of triggers.

    What is read for a trigger before the steered block stays; of the recommended trigger only the block that is
    recommended, so that a rule that names none gets that one.

    Raises:
        ValueError: The group has no setting.
    """
    if (chosen := result.chosen) is None or (effect := result.effect) is None:
        raise ValueError(f"group {result.name} has no setting")
    vector = group.vectors[chosen.method]
    block, metadata = chosen.block, vector.metadata
    read = chosen.trigger.block

    def readable(blocks: Sequence[int], kind: str) -> set[int]:
        return {one for one in blocks if one <= block and (chosen.trigger.kind != kind or one == read)}

    probes = readable(tuple(vector.probes), "probe")
    centroids = readable(tuple(vector.centroids), "similarity")
    update: dict[str, Any] = {
        "name": result.name,
        "description": f"{chosen.method} at block {block}, calibrated on {effect.lift.problems} held-out problems",
        "calibrated_strength": {block: chosen.strength},
        "residual_norm": {block: metadata.residual_norm[block]},
        "split_half_cosine": _only(metadata.split_half_cosine, {block}),
        "probe_threshold": _only(metadata.probe_threshold, probes),
        "probe_auc": _only(metadata.probe_auc, probes),
        "centroid_min_cosine": _only(metadata.centroid_min_cosine, centroids),
        "held_out_lift": effect.lift,
        "recommended_trigger": chosen.trigger.recommended(vector),
    }
    return dataclasses.replace(
        vector,
        metadata=metadata.model_copy(update=update),
        directions={block: vector.directions[block]},
        probes=_only(vector.probes, probes),
        centroids=_only(vector.centroids, centroids),
        sha256="",
    )


def _only(values: dict[int, Any], blocks: set[int]) -> dict[int, Any]:
    return {block: value for block, value in values.items() if block in blocks}


def calibrated_on(path: Path) -> set[str]:
    """Ids of the problems that settings were chosen and confirmed on, from `calibration.json`; none without one.

    Raises:
        VectorsError: The file is there, and not what calibration writes.
    """
    try:
        return set(json.loads(path.read_bytes()).get("problem_ids", ()))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise VectorsError(f"{path} is not what `pts calibrate` writes: {error}") from error
