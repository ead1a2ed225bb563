"""Whether a model's rows can have the same bits in every batch, and what has to be done for it.

A forward computes many rows at once, and the bits of a row may depend on how many there are: the libraries choose
another order of additions for another shape. On a CPU in float32 there is a tile, a small number of rows, such that
all products of whole tiles agree; `row_tile` finds it on this machine by trying the model's own shapes. Everything
else follows from whole tiles: activations whose vectorised and scalar code differ are computed in aligned pieces,
attention and experts are in `stable_attention` and `stable_experts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MethodType, TracebackType
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear
from transformers.activations import ACT2CLS

from steering_engine.engine import attention
from steering_engine.engine.stable_attention import Segments, arrange, attend
from steering_engine.loading import LoadedModel

SHARED = "several processes share it, and how they sum depends on the batch"
"""Why a model that several processes share promises nothing."""

TILES = (4, 8, 16, 32)
"""Tiles that are tried; the smallest that works wastes the least."""
_TILE_COUNTS = (1, 2, 3, 5, 8, 13, 16, 31, 64)
_MOST_OPERATIONS = (
    4e9  # of the trials of one shape, about a tenth of a second; a smaller tile has more counts tried
)
_MOST_FOR_THE_LAST = 3e10  # of the largest forward's, which is tried where it takes less than a second
_LEAST_ROWS = 64  # a tile that holds for fewer is not worth it
_PARALLEL_ELEMENTS = 32_768  # torch splits an elementwise operation over threads from this many elements on
_VECTOR_ELEMENTS = 32  # an operation's vectorised part is a multiple of this (two vectors of AVX-512)
_PROMPT = 300  # several blocks of keys


def unstable_reason(loaded: LoadedModel) -> str | None:
    """Why the rows of this model can't have the same bits in every batch; None when they may."""
    if loaded.processes > 1:
        return SHARED
    if loaded.device.type != "cpu":
        return f"it runs on {loaded.device.type}, where products depend on the batch; a CPU is needed"
    if loaded.model.dtype != torch.float32:
        return f"it runs in {str(loaded.model.dtype).removeprefix('torch.')}; float32 is needed"
    if loaded.model.config._attn_implementation != attention.NAME:  # noqa: SLF001 -- the library's own switch
        return "its attention can't be computed request by request"
    return None


class Tile(NamedTuple):
    """Rows in whole tiles have the same bits in any batch.

    Attributes:
        rows: Rows of a tile.
        most: Rows of a forward up to which that was found to hold.
    """

    rows: int
    most: int


@torch.inference_mode()
def row_tile(loaded: LoadedModel, most_rows: int) -> Tile | None:
    """The smallest tile with which no product of this model depends on the batch on this machine; None if none does.

    Args:
        loaded: The model.
        most_rows: Rows of the largest forward that is wanted. A library may change its ways at some size; where no tile
            holds that far, the one that holds the furthest is taken.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = _weights_by_shape(loaded.model)
    config = loaded.model.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or loaded.hidden_size // heads)
    best = None
    for rows in TILES:
        most = min(_stable_rows(weight, bias, rows, most_rows, generator) for weight, bias in shapes)
        useful = most >= min(most_rows, _LEAST_ROWS) and (best is None or most > best.most)
        if useful and _attention_is_stable(heads // kv_heads, head_dim, rows, generator):
            best = Tile(rows, most)
            if most >= most_rows:
                break
    return best


def _weights_by_shape(model: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """One weight `[out, in]`, with its bias, for every shape and layout that a product of the model has."""
    found: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor | None]] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() not in (2, 3) or isinstance(module, torch.nn.Embedding):
                continue
            matrix = weight[0] if weight.dim() == 3 else weight  # of experts; all have the same shape
            bias = getattr(module, "bias" if name == "weight" else f"{name}_bias", None)
            bias = bias[0] if isinstance(bias, torch.Tensor) and bias.dim() == 2 else bias
            if bias is not None and bias.shape[0] != matrix.shape[0]:
                matrix = matrix.t()  # GPT-2 keeps `[in, out]`
            found.setdefault((matrix.shape, matrix.stride(), bias is None), (matrix, bias))
    return list(found.values())


def _stable_rows(
    weight: torch.Tensor, bias: torch.Tensor | None, tile: int, most_rows: int, generator: torch.Generator
) -> int:
    """Rows up to which a row's product is the same at every place among whole tiles, as far as is tried."""
    row = torch.randn(1, weight.shape[1], generator=generator)
    expected = linear(row.repeat(tile, 1), weight, bias)[0]
    last = -(-most_rows // tile)
    operations = 0.0
    held = 0
    for count in (*(one for one in _TILE_COUNTS if one < last), last):
        rows = count * tile
        operations += 2 * rows * weight.numel()
        spent = operations > _MOST_OPERATIONS and (count != last or operations > _MOST_FOR_THE_LAST)
        if count > 1 and spent:
            continue
        if not bool((linear(row.repeat(rows, 1), weight, bias) == expected).all()):
            return held
        held = rows
    return most_rows


def _attention_is_stable(group: int, head_dim: int, tile: int, generator: torch.Generator) -> bool:
    """Whether a prompt in one piece, in chunks, and row by row beside others gives the same attention."""
    query, key, value = (torch.randn(n, _PROMPT, head_dim, generator=generator) for n in (group, 1, 1))
    scale = head_dim**-0.5

    def rows(first: int, stop: int) -> torch.Tensor:
        arrangement = arrange(Segments([0, stop - first], [0, stop], [stop]), kv_heads=1, window=None)
        return attend(query[:, first:stop], key[:, :stop], value[:, :stop], arrangement, scale, tile)

    whole = rows(0, _PROMPT)
    chunks = torch.cat([rows(0, 7), rows(7, 8), rows(8, 200), rows(200, _PROMPT)])
    stops = list(range(1, _PROMPT + 1, 3))
    newest = torch.tensor(stops) - 1
    bounds = [0, *torch.tensor(stops).cumsum(0).tolist()]
    packed = arrange(Segments(list(range(len(stops) + 1)), bounds, stops), kv_heads=1, window=None)
    keys, values = (torch.cat([one[:, :stop] for stop in stops], dim=1) for one in (key, value))
    together = attend(query[:, newest], keys, values, packed, scale, tile)
    alone = torch.cat([rows(stop - 1, stop) for stop in stops])
    return all(
        torch.equal(one, other)
        for one, other in ((chunks, whole), (together, whole[newest]), (alone, whole[newest]))
    )


class AlignedActivations:
    """A context in which a model computes its activation functions in pieces that start at whole vectors."""

    def __init__(self, model: torch.nn.Module) -> None:
        functions = {one[0] if isinstance(one, tuple) else one for one in ACT2CLS.values()}
        kinds = tuple(one for one in functions if isinstance(one, type))
        self._pairs = [
            (module, _in_pieces(MethodType(type(module).forward, module)))
            for module in model.modules()
            if type(module) in kinds and not list(module.parameters())
        ]
        self._replaced: list[Any] = []

    def __enter__(self) -> None:
        # nnsight, which records from the same model, puts a `forward` of its own onto every module.
        self._replaced = [vars(module).get("forward") for module, _ in self._pairs]
        for module, in_pieces in self._pairs:
            module.forward = in_pieces

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (module, _), replaced in zip(self._pairs, self._replaced, strict=True):
            if replaced is None:
                del module.forward  # what its class defines comes back
            else:
                module.forward = replaced


def _in_pieces(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`function` of rows, such that an element's bits don't depend on where torch cuts its work.

    Vectorised and scalar code of an activation may differ in the last bit, and torch runs the scalar one at the ends of
    its threads' shares.
    """

    def call(rows: torch.Tensor) -> torch.Tensor:
        width = rows.shape[-1]
        unit = _VECTOR_ELEMENTS // math.gcd(width, _VECTOR_ELEMENTS)  # rows that are whole vectors together
        count = rows.numel() // width
        if count % unit == 0 and rows.numel() < _PARALLEL_ELEMENTS:
            return function(rows)
        size = _PARALLEL_ELEMENTS // width // unit * unit if count % unit == 0 else 0
        pieces = torch.split(rows.reshape(count, width), max(1, size))
        return torch.cat([function(piece) for piece in pieces]).reshape(rows.shape)

    return call
