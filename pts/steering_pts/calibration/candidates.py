"""The candidate vectors that compete: a folder with an index of groups, or any folder of vector files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steering_engine.errors import VectorFileError
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import VectorsError
from steering_pts.interop.model_vectors import free_name, vector_name

INDEX = "index.json"


@dataclass(frozen=True, slots=True, eq=False)
class CandidateGroup:
    """Vectors of the same decisions, one file for each method.

    Attributes:
        name: Of the group, and of the vector that is made of it.
        vectors: By method.
        events: Decisions that they were made from.
    """

    name: str
    vectors: Mapping[str, SteeringVector]
    events: int

    @property
    def ids(self) -> dict[str, str]:
        """By method, the name under which its file is loaded: after its content, so that no name means two files."""
        return {method: f"candidate-{vector.sha256[:32]}" for method, vector in self.vectors.items()}


class _Group(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    events: Annotated[int, Field(ge=0)]
    files: Annotated[dict[str, str], Field(min_length=1)]


class _Index(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_name: Literal["steering.candidates/1"] = Field(alias="schema")
    groups: tuple[_Group, ...]


def read_candidates(folder: Path) -> list[CandidateGroup]:
    """The groups of a folder, in the order of its index; without an index each vector file is a group of its own.

    Such a group is called as its file, as far as a vector can be.

    Raises:
        VectorsError: There are no files, the index is wrong, or files are; everything that is wrong at once.
    """
    if not folder.is_dir():
        raise VectorsError(
            f"{folder}: no such folder of vector files; `pts vectors RUN` makes RUN/candidates"
        )
    index = folder / INDEX
    faults: list[str] = []
    if index.is_file():
        groups = [
            (one.name, {method: folder / file for method, file in one.files.items()})
            for one in _read_index(index).groups
        ]
        if strange := sorted(
            {str(path) for _, files in groups for path in files.values() if path.parent != folder}
        ):
            faults += [f"{path}: a candidate's file must be in the folder of its index" for path in strange]
    else:
        groups = _named(sorted(folder.glob("*.safetensors")))
    found = [_group(name, files, faults) for name, files in groups]
    if faults:
        raise VectorsError("\n  ".join([f"{folder}:", *faults]) if len(faults) > 1 else faults[0])
    if not found:
        raise VectorsError(f"{folder}: it holds no vector files (*.safetensors)")
    return [group for group in found if group is not None]


def load_candidates(model: SteeredModel, groups: list[CandidateGroup], folder: Path) -> None:
    """Loads all candidates into the model's registry.

    Raises:
        VectorMismatchError: A file was made for another model.
        VectorTableFullError: There is no room for all of them.
    """
    paths = {load_vector(path).sha256: path for path in sorted(folder.glob("*.safetensors"))}
    for group in groups:
        for method, vector in group.vectors.items():
            model.vectors.load(group.ids[method], paths[vector.sha256], vector.sha256)


def _named(paths: Sequence[Path]) -> list[tuple[str, dict[str, Path]]]:
    """A group of each file, by a name of its own that a vector may have: what is kept is written under it."""
    taken: set[str] = set()
    return [(free_name(vector_name(path.stem), taken), {"": path}) for path in paths]


def _read_index(path: Path) -> _Index:
    try:
        return _Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()
        )
        raise VectorsError(f"{path} is no index of candidates: {reasons}") from None
    except OSError as error:
        raise VectorsError(f"{path} can't be read: {error.strerror}") from error


def _group(name: str, files: Mapping[str, Path], faults: list[str]) -> CandidateGroup | None:
    vectors: dict[str, SteeringVector] = {}
    for method, path in files.items():
        try:
            vector = load_vector(path)
        except VectorFileError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        else:
            vectors[method or vector.metadata.method] = vector
    if len(vectors) < len(files):
        return None
    return CandidateGroup(name, vectors, max(vector.metadata.event_count for vector in vectors.values()))
