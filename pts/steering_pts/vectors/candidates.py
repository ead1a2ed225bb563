"""The candidates of a run: a vector file for every group and method, and the index that names them.

Files are written one by one. A method that learns takes long, so what is made already of the same pivots and settings
is kept when the same command is given again; the index comes last, and a folder without it is not finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import load_vector, save_vector
from steering_engine.vectors.schema import SteeringVector, VectorMetadata
from steering_pts.errors import MethodError
from steering_pts.ledger.export import write_atomically
from steering_pts.progress import Advance
from steering_pts.vectors.building import Provenance, VectorMaker, to_vector

INDEX: Final = "index.json"
SCHEMA: Final = "steering.candidates/1"
_LONGEST_NAME: Final = 63  # of a vector file


@dataclass(frozen=True, slots=True)
class Candidates:
    """A group's vectors, one file for each method that made one.

    Attributes:
        name: Of the group.
        events: Decisions of the group.
        min_match: Ids with which a context has to agree; 0 without contexts.
        files: File by method.
        metadata: What each file says, by method.
    """

    name: str
    events: int
    min_match: int
    files: Mapping[str, Path]
    metadata: Mapping[str, VectorMetadata]

    def load(self, method: str) -> SteeringVector:
        """A method's vector."""
        return load_vector(self.files[method])


def write_group(
    folder: Path,
    maker: VectorMaker,
    name: str,
    methods: Sequence[str],
    blocks: Sequence[int],
    provenance: Provenance,
    advance: Advance,
) -> tuple[Candidates, list[str]]:
    """Writes a group's vectors, and says which methods made none and why.

    Args:
        folder: The candidates' folder.
        maker: Makes them.
        name: Of the group.
        methods: Which methods.
        blocks: Which blocks.
        provenance: What the files say about where they come from.
        advance: Hears of every method that is done.
    """
    files: dict[str, Path] = {}
    metadata: dict[str, VectorMetadata] = {}
    left_out = []
    for method in methods:
        path = folder / f"{file_name(name, method)}.safetensors"
        recipe = _recipe(maker, method, blocks, provenance)
        found = _made_before(path, recipe)
        if found is None:
            try:
                made = maker.make(method, blocks)
            except MethodError as error:
                left_out.append(f"{name}: {error}")
                advance(0)
                continue
            vector = to_vector(maker, method, made, path.stem, provenance)
            sha256 = save_vector(path, vector)
            write_atomically(_note(path), [json.dumps({"recipe": recipe, "sha256": sha256})])
            found = vector.metadata
        files[method], metadata[method] = path, found
        advance(0)
    group = maker.group
    min_match = group.min_match if group.contexts else 0
    return Candidates(name, len(group.events), min_match, files, metadata), left_out


def write_index(folder: Path, groups: Sequence[Candidates], run_digest: str) -> None:
    """Writes the index, and removes what earlier commands made and this one did not."""
    kept = {path for group in groups for path in group.files.values()}
    for path in set(folder.glob("*.safetensors")) - kept:
        path.unlink()
        _note(path).unlink(missing_ok=True)
    index = {
        "schema": SCHEMA,
        "run_digest": run_digest,
        "groups": [
            {
                "name": group.name,
                "events": group.events,
                "files": {method: path.name for method, path in group.files.items()},
            }
            for group in groups
        ],
    }
    write_atomically(folder / INDEX, [json.dumps(index, indent=2)])


def file_name(group: str, method: str) -> str:
    """`<group>-<method>`, shortened where a vector's name may not be so long."""
    end = f"-{method.replace('_', '-')}"
    return group[: _LONGEST_NAME - len(end)].rstrip("-") + end


def _recipe(maker: VectorMaker, method: str, blocks: Sequence[int], provenance: Provenance) -> str:
    """Names everything that a file is made of, but the time."""
    triggers = maker.triggers
    digest = hashlib.sha256()
    digest.update(repr((method, list(blocks), provenance.run_digest, provenance.licence)).encode())
    digest.update(repr((maker.group, maker.indices, sorted(provenance.settings.items()))).encode())
    digest.update(maker.recording.plan.encode())
    for block, probe in sorted(triggers.probes.items()):
        digest.update(repr((block, probe.bias)).encode() + probe.weight.numpy().tobytes())
    for block, centroids in sorted(triggers.centroids.items()):
        digest.update(repr(block).encode() + centroids.numpy().tobytes())
    numbers = (triggers.thresholds, triggers.aucs, triggers.min_cosines)
    digest.update(repr([sorted(values.items()) for values in numbers]).encode())
    return digest.hexdigest()


def _note(path: Path) -> Path:
    return path.with_name(f".{path.stem}.made.json")


def _made_before(path: Path, recipe: str) -> VectorMetadata | None:
    """What a file says, if it was made by this recipe and is as it was then."""
    try:
        note = json.loads(_note(path).read_bytes())
        vector = load_vector(path)
    except (OSError, ValueError, VectorFileError):
        return None
    return vector.metadata if note == {"recipe": recipe, "sha256": vector.sha256} else None
