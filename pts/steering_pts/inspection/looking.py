"""All that there is to say about a vector file, as one value that is printed or written as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from steering_engine.errors import ModelError, VectorFileError
from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InspectionError
from steering_pts.inspection.facts import VectorFacts, facts_of, metadata_rows
from steering_pts.inspection.lens import Neighbours, nearest_tokens
from steering_pts.inspection.model import differences, load_named, load_own
from steering_pts.vectors.recording import SCHEMA as STATES


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What is looked at.

    Attributes:
        model: The model to look with; None for the file's own, where it is on this machine.
        use_model: Whether a model is used at all.
        tokens: Nearest tokens of a direction on either side.
        contexts: Recorded contexts that are shown.
    """

    model: str | None = None
    use_model: bool = True
    tokens: int = 8
    contexts: int = 5


@dataclass(frozen=True, slots=True)
class Context:
    """A recorded context: its ids, and its text where a tokenizer is at hand."""

    ids: tuple[int, ...]
    text: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A vector file, looked at.

    Attributes:
        path: The file.
        vector: What is in it.
        facts: Its numbers.
        contexts: The first of its contexts.
        nearest: Nearest tokens by block; None without a model.
        notes: What should be known about the model that was used, or why none was.
    """

    path: Path
    vector: SteeringVector
    facts: VectorFacts
    contexts: tuple[Context, ...]
    nearest: dict[int, Neighbours] | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; a number that is not finite, which JSON has no word for, is null."""
        nearest = self.nearest
        values: dict[str, Any] = {
            "path": str(self.path),
            "sha256": self.vector.sha256,
            "metadata": metadata_rows(self.vector),
            **dataclasses.asdict(self.facts),
            "context_texts": [dataclasses.asdict(context) for context in self.contexts],
            "nearest_tokens": None
            if nearest is None
            else {str(block): dataclasses.asdict(tokens) for block, tokens in nearest.items()},
            "notes": list(self.notes),
        }
        return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(part) for name, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
        case _:
            return value


def inspect_file(path: Path, options: InspectOptions) -> Inspection:
    """Looks at a vector file.

    Raises:
        VectorFileError: It is not a sound vector file; the error holds everything that is wrong.
        InspectionError: It is not there or can't be read, or the model named is not of the vector's shape.
        ModelError: The model named can't be loaded.
    """
    vector = _read(path)
    loaded, notes = _model(vector, options)
    nearest = None if loaded is None else nearest_tokens(loaded, vector.directions, options.tokens)
    return Inspection(
        path=path,
        vector=vector,
        facts=facts_of(vector),
        contexts=tuple(_contexts(vector.contexts[: options.contexts], loaded)),
        nearest=nearest,
        notes=tuple(notes),
    )


def _read(path: Path) -> SteeringVector:
    try:
        if path.is_dir():
            files = len(list(path.glob("*.safetensors")))
            raise InspectionError(f"{path} is a folder; name one of its {files} vector files (*.safetensors)")
        return load_vector(path)
    except FileNotFoundError:
        raise InspectionError(f"{path}: no such file; `pts vectors` writes vector files") from None
    except OSError as error:
        raise InspectionError(f"{path} can't be read: {error.strerror}") from error
    except VectorFileError as error:
        if _holds_states(path):
            raise InspectionError(
                f"{path} holds recorded states ({STATES}), no vectors; `pts vectors RUN` makes vectors of them"
            ) from error
        raise VectorFileError(str(path), error.problems) from error


def _holds_states(path: Path) -> bool:
    """Whether a file that is no vector file holds the states of a run, which may be too many for a vector file."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("schema") == STATES
    except (OSError, SafetensorError):
        return False


def _model(vector: SteeringVector, options: InspectOptions) -> tuple[LoadedModel | None, list[str]]:
    if not options.use_model:
        return None, ["no model was used: nearest tokens and texts are left out"]
    if options.model is not None:
        loaded = load_named(options.model, vector.metadata)
        return loaded, differences(loaded, vector.metadata)
    try:
        loaded = load_own(vector.metadata)
    except (ModelError, InspectionError) as error:
        return None, [f"{error}: nearest tokens and texts are left out; name the model with --model"]
    return loaded, differences(loaded, vector.metadata)


def _contexts(contexts: Sequence[tuple[int, ...]], loaded: LoadedModel | None) -> list[Context]:
    return [
        Context(ids, None if loaded is None else str(loaded.tokenizer.decode(list(ids)))) for ids in contexts
    ]
