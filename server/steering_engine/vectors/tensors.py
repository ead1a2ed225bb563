"""The tensors of a vector file: what a vector is written as, everything that is wrong with them, and back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.schema import MAX_CENTROIDS, Probe, SteeringVector, VectorMetadata

_UNIT_TOLERANCE = 1e-4
_MAX_CONTEXT_IDS = 1 << 18  # ready for matching, 75 MiB

_BLOCK = "(0|[1-9][0-9]{0,5})"
_DIRECTION = re.compile(rf"direction\.{_BLOCK}\Z")
_WEIGHT = re.compile(rf"probe\.{_BLOCK}\.weight\Z")
_BIAS = re.compile(rf"probe\.{_BLOCK}\.bias\Z")
_CENTROIDS = re.compile(rf"centroid\.{_BLOCK}\Z")
_CONTEXTS = re.compile(r"context\.(ids|offsets)\Z")


def tensors_of(vector: SteeringVector) -> dict[str, torch.Tensor]:
    """What a vector is written as, by name."""
    tensors = {f"direction.{block}": direction for block, direction in vector.directions.items()}
    for block, probe in vector.probes.items():
        tensors[f"probe.{block}.weight"] = probe.weight
        tensors[f"probe.{block}.bias"] = torch.tensor(probe.bias, dtype=torch.float32)
    tensors |= {f"centroid.{block}": centroids for block, centroids in vector.centroids.items()}
    if vector.contexts:
        lengths = torch.tensor([0, *map(len, vector.contexts)], dtype=torch.int64)
        tensors["context.offsets"] = lengths.cumsum(0)
        tensors["context.ids"] = torch.tensor(
            list(itertools.chain.from_iterable(vector.contexts)), dtype=torch.int32
        )
    # Copies, because directions are often rows of one matrix, and safetensors refuses tensors that share memory.
    return {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in sorted(tensors.items())
    }


def vector_of(tensors: Mapping[str, torch.Tensor], metadata: VectorMetadata, sha256: str) -> SteeringVector:
    """The vector that a file's tensors are; `tensor_problems` found none in them."""
    contexts: tuple[tuple[int, ...], ...] = ()
    if "context.ids" in tensors:
        ids = tensors["context.ids"].tolist()
        spans = itertools.pairwise(tensors["context.offsets"].tolist())
        contexts = tuple(tuple(ids[start:end]) for start, end in spans)
    named = _Named.of(tensors)
    return SteeringVector(
        metadata=metadata,
        directions=named.directions,
        contexts=contexts,
        probes={block: Probe(weight, named.biases[block].item()) for block, weight in named.weights.items()},
        centroids=named.centroids,
        sha256=sha256,
    )


def tensor_problems(tensors: Mapping[str, torch.Tensor], metadata: VectorMetadata | None) -> Iterator[str]:
    """Everything that is wrong with a file's tensors, one sentence each.

    Args:
        tensors: All tensors of the file, by name.
        metadata: What the file says about them; None where that is wrong itself, and what depends on it is skipped.
    """
    known = (_DIRECTION, _WEIGHT, _BIAS, _CENTROIDS, _CONTEXTS)
    yield from (f"unknown tensor {name!r}" for name in tensors if not any(kind.match(name) for kind in known))
    named = _Named.of(tensors)
    if not named.directions:
        yield "no tensor direction.{block}"
    for block, direction in named.directions.items():
        yield from _located(f"direction.{block}", block, metadata, _direction_problem(direction, metadata))
    for block in sorted(named.weights.keys() | named.biases.keys()):
        yield from _probe_problems(block, named, metadata)
    for block, centroids in named.centroids.items():
        yield from _located(f"centroid.{block}", block, metadata, _centroid_problem(centroids, metadata))
    if metadata is not None:
        yield from _metadata_problems(named, metadata)
    yield from _context_problems(tensors, metadata)


class _Named(NamedTuple):
    """Tensors by what they are, each by block, ascending."""

    directions: dict[int, torch.Tensor]
    weights: dict[int, torch.Tensor]
    biases: dict[int, torch.Tensor]
    centroids: dict[int, torch.Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> _Named:
        def of_kind(kind: re.Pattern[str]) -> dict[int, torch.Tensor]:
            found = {int(match[1]): tensors[name] for name in tensors if (match := kind.match(name))}
            return dict(sorted(found.items()))

        return cls(*map(of_kind, (_DIRECTION, _WEIGHT, _BIAS, _CENTROIDS)))


def _located(name: str, block: int, metadata: VectorMetadata | None, problem: str | None) -> Iterator[str]:
    if metadata is not None and block >= metadata.block_count:
        problem = f"the model has blocks 0 to {metadata.block_count - 1}"
    if problem is not None:
        yield f"{name}: {problem}"


def _value_problem(tensor: torch.Tensor, *shape: int | str) -> str | None:
    """What is wrong with a tensor's type, shape or values; a word in the shape stands for any size."""
    if tensor.dtype != torch.float32:
        return f"dtype {tensor.dtype}, expected float32"
    sizes_fit = tensor.ndim == len(shape) and all(
        isinstance(expected, str) or size == expected
        for size, expected in zip(tensor.shape, shape, strict=True)
    )
    if not sizes_fit:
        return f"shape {list(tensor.shape)}, expected [{', '.join(map(str, shape))}]"
    return None if torch.isfinite(tensor).all() else "has a value that is not finite"


def _width(metadata: VectorMetadata | None) -> int | str:
    return "hidden" if metadata is None else metadata.hidden_size


def _direction_problem(direction: torch.Tensor, metadata: VectorMetadata | None) -> str | None:
    if problem := _value_problem(direction, _width(metadata)):
        return problem
    norm = direction.double().norm().item()
    return None if abs(norm - 1) <= _UNIT_TOLERANCE else f"norm {norm:.6g}, expected 1"


def _probe_problems(block: int, named: _Named, metadata: VectorMetadata | None) -> Iterator[str]:
    weight, bias = named.weights.get(block), named.biases.get(block)
    if weight is None or bias is None:
        yield f"probe.{block}.weight and probe.{block}.bias must come together"
    if weight is not None:
        problem = _value_problem(weight, _width(metadata))
        if problem is None and not weight.any():
            problem = "is zero everywhere"
        yield from _located(f"probe.{block}.weight", block, metadata, problem)
    if bias is not None:
        yield from _located(f"probe.{block}.bias", block, metadata, _value_problem(bias))


def _centroid_problem(centroids: torch.Tensor, metadata: VectorMetadata | None) -> str | None:
    if problem := _value_problem(centroids, "k", _width(metadata)):
        return problem
    if not 1 <= len(centroids) <= MAX_CENTROIDS:
        return f"{len(centroids)} rows, expected 1 to {MAX_CENTROIDS}"
    zero_rows = (~centroids.any(dim=1)).nonzero()[:, 0].tolist()
    return f"zero in rows {zero_rows}" if zero_rows else None


def _metadata_problems(named: _Named, metadata: VectorMetadata) -> Iterator[str]:
    for name, values in (
        ("calibrated_strength", metadata.calibrated_strength),
        ("residual_norm", metadata.residual_norm),
    ):
        if set(values) != set(named.directions):
            yield f"metadata {name!r} is for blocks {sorted(values)}, the directions for {list(named.directions)}"
    probes = named.weights.keys() | named.biases.keys()
    for name, values, tensor, blocks in (
        ("probe_threshold", metadata.probe_threshold, "probe", probes),
        ("probe_auc", metadata.probe_auc, "probe", probes),
        ("centroid_min_cosine", metadata.centroid_min_cosine, "centroids", set(named.centroids)),
    ):
        if strange := sorted(values.keys() - blocks):
            yield f"metadata {name!r} is for blocks {sorted(values)}, but {strange} have no {tensor}"
    recommended = metadata.recommended_trigger
    for kind, tensor, blocks in (
        ("probe", "probe", probes),
        ("similarity", "centroids", set(named.centroids)),
    ):
        if recommended is not None and recommended.kind == kind and recommended.block not in blocks:
            yield f"metadata 'recommended_trigger' reads block {recommended.block}, which has no {tensor}"


def _context_problems(tensors: Mapping[str, torch.Tensor], metadata: VectorMetadata | None) -> Iterator[str]:
    ids, offsets = tensors.get("context.ids"), tensors.get("context.offsets")
    if ids is None and offsets is None:
        return
    if ids is None or offsets is None:
        yield "context.ids and context.offsets must come together"
    elif ids.dtype != torch.int32 or ids.ndim != 1 or offsets.dtype != torch.int64 or offsets.ndim != 1:
        yield "context.ids must be int32 [n] and context.offsets int64 [m + 1]"
    elif (problem := _span_problem(ids.tolist(), offsets.tolist())) or (
        metadata is not None and (problem := _match_problem(metadata.context_min_match, offsets.tolist()))
    ):
        yield problem


def _match_problem(min_match: int, offsets: list[int]) -> str | None:
    if min_match < 1:
        return "metadata 'context_min_match' must be at least 1 for a file with contexts"
    longest = max(end - start for start, end in itertools.pairwise(offsets))
    if min_match > longest:  # no place could ever match
        return f"metadata 'context_min_match' is {min_match}, and the longest context has {longest} ids"
    return None


def _span_problem(ids: list[int], offsets: list[int]) -> str | None:
    lengths = [end - start for start, end in itertools.pairwise(offsets)]
    if not lengths or offsets[0] != 0 or offsets[-1] != len(ids) or min(lengths) < 1:
        return "context.offsets must rise from 0 to the number of ids, without an empty context"
    if max(lengths) > MAX_CONTEXT_TOKENS:
        return f"a context has {max(lengths)} ids; at most {MAX_CONTEXT_TOKENS} are kept"
    if len(ids) > _MAX_CONTEXT_IDS:
        return f"its contexts have {len(ids)} ids in all; at most {_MAX_CONTEXT_IDS} are allowed"
    return "context.ids holds a negative id" if min(ids) < 0 else None
