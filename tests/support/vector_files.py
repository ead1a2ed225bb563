"""Vector files with everything that they can have, and files with something wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from steering_engine.errors import VectorFileError
from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import parse_vector
from steering_engine.vectors.schema import SteeringVector
from tests.support.vectors import random_vector

Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]
Change = Callable[[Tensors, Metadata], None]
Case = tuple[str, Change, list[str]]


def full_vector(loaded: LoadedModel, name: str = "calm") -> SteeringVector:
    """Directions at blocks 0 and 2, probes at 0 and 1, centroids at 1 and 2, and three contexts."""
    generator = torch.Generator().manual_seed(7)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    width = loaded.hidden_size
    return random_vector(
        loaded,
        name,
        [0, 2],
        contexts=((5, 6, 7), (8,), (5, 6)),
        min_match=1,
        probes={0: (numbers(width), 0.25), 1: (numbers(width), -1.5)},
        centroids={1: 30 * numbers(2, width), 2: numbers(3, width)},
        probe_threshold={0: 0.7},
        probe_auc={0: 0.9, 1: 0.8},
        centroid_min_cosine={2: 0.6},
    )


def unit(size: int) -> torch.Tensor:
    """The first unit vector."""
    return torch.nn.functional.one_hot(torch.tensor(0), size).float()


def metadata_of(data: bytes) -> Metadata:
    """The metadata texts of a file."""
    length = int.from_bytes(data[:8], "little")
    found: Metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def metadata_size(data: bytes) -> int:
    """Bytes of the metadata of a file, which a loaded vector keeps."""
    return sum(len(text.encode()) for pair in metadata_of(data).items() for text in pair)


def changed(data: bytes, change: Change) -> bytes:
    """The file with its tensors and metadata changed."""
    tensors, metadata = load(data), metadata_of(data)
    change(tensors, metadata)
    return save(tensors, metadata or None)


def problems_of(data: bytes) -> tuple[str, ...]:
    """Everything that reading the file finds wrong; fails where that is nothing."""
    with pytest.raises(VectorFileError) as caught:
        parse_vector(data, "it.safetensors")
    assert str(caught.value) == "it.safetensors: " + "; ".join(caught.value.problems)
    return caught.value.problems


def set_metadata(**values: object) -> Change:
    """Sets fields of the metadata."""
    return lambda _, metadata: metadata.update({key: json.dumps(value) for key, value in values.items()})


def set_tensor(name: str, tensor: torch.Tensor) -> Change:
    """Sets a tensor."""
    return lambda tensors, _: tensors.update({name: tensor})


def drop_tensor(name: str) -> Change:
    """Takes a tensor away."""

    def drop(tensors: Tensors, _: Metadata) -> None:
        del tensors[name]

    return drop


def cases(table: list[Case]) -> dict[str, Any]:
    """Arguments of `pytest.mark.parametrize` for a table of names, changes and what is found wrong then."""
    return {"argvalues": [case[1:] for case in table], "ids": [case[0] for case in table]}
