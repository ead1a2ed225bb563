"""Attention whose every row has the same bits in any batch: decoded alone, among others, or in a prompt of any chunks.

A row's bits depend on the shapes that its products and sums are computed in. Measured with float32 and MKL: the rows
of a product agree for all numbers of rows that are multiples of a small tile, and for all numbers of products side by
side; a product over more than 192 keys is split by its length, so zeros behind its end change it. So here

- query rows come in whole tiles (`steering_engine.engine.stability` finds the tile),
- keys stand at slots that depend on their positions alone, in whole blocks of 64, with weights of exactly 0 between,
- values are summed block by block, and the blocks one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from steering_engine.engine.scratch import scratch

_BLOCK = 64
"""Slots of one product with the values; also whole vectors, so that the sum of a softmax puts a slot into the same lane
whatever the length."""
_SCORES_AT_ONCE = 1 << 22
"""Scores of a prompt that are in memory at a time: 16 MiB."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segments:
    """Which rows and keys of a packed batch are whose.

    Attributes:
        queries: `[requests + 1]` bounds of the query rows.
        keys: `[requests + 1]` bounds of the keys.
        ends: `[requests]` position after the newest row; the keys are those of the positions before it.
        places: `[keys]` where each key is among those that attention is given; None when they stand in order.
    """

    queries: Sequence[int]
    keys: Sequence[int] | Integers
    ends: Sequence[int]
    places: Integers | None = None


class _Prompt(NamedTuple):
    """Several rows of one request: the rows, the key at each slot, and whether it is hidden `[rows, slots]`."""

    rows: slice
    keys: torch.Tensor
    hidden: torch.Tensor


class _Newest(NamedTuple):
    """One row for each of some requests: the rows, the key at each slot, and what is added to its score."""

    rows: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor


class Arrangement(NamedTuple):
    """Where rows and keys go; the same for all layers that see the same keys."""

    prompts: tuple[_Prompt, ...]
    newest: _Newest | None


def arrange(segments: Segments, kv_heads: int, window: int | None) -> Arrangement:
    """Finds the slots of all keys.

    Args:
        segments: Whose rows and keys there are.
        kv_heads: Heads of the keys.
        window: Positions that a row sees, itself included; None means all before it.
    """
    newest, prompts = [], []
    for request, (start, stop) in enumerate(pairwise(segments.queries)):
        if stop - start == 1:
            newest.append(request)
            continue
        keys, hidden = _slots(segments, [request], stop - start, kv_heads, window)
        prompts.append(_Prompt(slice(start, stop), keys, torch.from_numpy(hidden[0])))
    if not newest:
        return Arrangement(tuple(prompts), None)
    rows = torch.tensor([segments.queries[request] for request in newest])
    keys, hidden = _slots(segments, newest, 1, kv_heads, window)
    mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
    return Arrangement(
        tuple(prompts), _Newest(rows, keys, torch.from_numpy(np.concatenate([mask] * kv_heads)))
    )


def _slots(
    segments: Segments, requests: Sequence[int], count: int, kv_heads: int, window: int | None
) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """The slots of some requests that have equally many rows.

    In numpy, whose calls take half the time of torch's at such sizes.

    Returns:
        Keys `[kv_heads * requests * slots]`, head by head, as rows of all heads' keys, those of a position together;
        and which of them are hidden from a request's rows, `[requests, count, slots]`.
    """
    bounds = np.asarray(segments.keys)
    starts = bounds[requests, None]
    lengths = bounds[1:][requests, None] - starts
    before = (np.asarray(segments.ends)[requests, None] - lengths) % _BLOCK
    offsets = np.arange(_whole(int((before + lengths).max()), _BLOCK)) - before
    # A slot without a key repeats one of the request's own: finite, so that its weight of 0 makes it nothing.
    index = starts + np.minimum(np.maximum(offsets, 0), lengths - 1)
    if segments.places is not None:
        index = segments.places[index]
    keys = index * kv_heads + np.arange(kv_heads)[:, None, None]
    rows = (lengths + np.arange(-count, 0))[:, :, None]
    offsets = offsets[:, None]
    hidden = (offsets < 0) | (offsets > rows)
    if window is not None:
        hidden |= offsets <= rows - window
    return torch.from_numpy(keys.reshape(-1)), hidden


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    arrangement: Arrangement,
    scale: float,
    tile: int,
) -> torch.Tensor:
    """Causal attention of every request's rows to its own keys.

    Args:
        query: `[heads, rows, head_dim]`.
        keys: `[kv_heads, keys, head_dim]`.
        values: `[kv_heads, keys, value_dim]`.
        arrangement: Whose they are, and where they go.
        scale: Of the scores.
        tile: Query rows come in multiples of it.

    Returns:
        `[rows, heads, value_dim]`.
    """
    if not arrangement.prompts and arrangement.newest is not None:
        return _one_row_each(query, keys, values, arrangement.newest, scale, tile)
    output = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
    for prompt in arrangement.prompts:
        output[prompt.rows] = _rows_of_one(query, keys, values, prompt, scale, tile)
    newest = arrangement.newest
    if newest is not None:
        output[newest.rows] = _one_row_each(query[:, newest.rows], keys, values, newest, scale, tile)
    return output


def _one_row_each(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, newest: _Newest, scale: float, tile: int
) -> torch.Tensor:
    """One query row per request: `[heads, requests, head_dim]` to `[requests, heads, value_dim]`."""
    heads, requests, head_dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    # Query heads that share a key head are the rows of one product.
    rows = query.reshape(kv_heads, group, requests, head_dim).transpose(1, 2)
    rows = _padded(rows.reshape(kv_heads * requests, group, head_dim), tile)
    own_keys = _gathered("keys", keys, newest.keys, len(rows))
    own_values = _gathered("values", values, newest.keys, len(rows))
    result = _weigh(rows, own_keys, own_values, newest.mask, scale)
    result = result[:, :group].reshape(kv_heads, requests, group, -1)
    return result.transpose(0, 1).reshape(requests, heads, -1)


def _gathered(name: str, cached: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Of `[kv_heads, keys, d]` those at an index `[count * slots]`, as `[count, slots, d]`."""
    heads, length, width = cached.shape
    # The cache keeps all heads of a position together, so this is a view and every row one copy of memory.
    rows = cached.transpose(0, 1).reshape(length * heads, width)
    found = scratch(name, (len(index), width), cached)
    return torch.index_select(rows, 0, index, out=found).view(count, -1, width)


def _rows_of_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prompt: _Prompt, scale: float, tile: int
) -> torch.Tensor:
    """Several query rows of one request: of `[heads, rows, head_dim]` its own, as `[own rows, heads, value_dim]`."""
    heads, _, head_dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    count, slots = prompt.hidden.shape
    own_keys = _gathered("keys", keys, prompt.keys, kv_heads)
    own_values = _gathered("values", values, prompt.keys, kv_heads)
    rows = query[:, prompt.rows].reshape(kv_heads, group, count, head_dim).transpose(1, 2)
    at_once = max(1, _SCORES_AT_ONCE // (heads * slots))
    outputs = []
    for start in range(0, count, at_once):
        part = slice(start, min(start + at_once, count))
        own = rows[:, part].reshape(kv_heads, -1, head_dim)
        mask = torch.where(prompt.hidden[part], -torch.inf, 0.0).repeat_interleave(group, dim=0)
        extra = _whole(own.shape[1], tile) - own.shape[1]
        mask = torch.cat([mask, mask[-1:].expand(extra, -1)])
        result = _weigh(_padded(own, tile), own_keys, own_values, mask[None], scale)
        outputs.append(result[:, : own.shape[1]].reshape(kv_heads, part.stop - part.start, group, -1))
    return torch.cat(outputs, dim=1).transpose(0, 1).reshape(count, heads, -1)


def _weigh(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax of the scores times the values: `[n, tiles, d]`, `[n, slots, d]`, and a mask that broadcasts to scores.

    The mask is added: 0, or minus infinity where a slot is hidden. Filling hidden scores takes eight times as long.
    """
    shape = (*query.shape[:2], keys.shape[1])
    scores = torch.bmm(query, keys.transpose(1, 2), out=scratch("scores", shape, query))
    torch.add(mask, scores, alpha=scale, out=scores)
    weights = torch.softmax(scores, dim=-1, out=scratch("weights", shape, query))
    result = torch.bmm(weights[:, :, :_BLOCK], values[:, :_BLOCK])
    for start in range(_BLOCK, keys.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        result += torch.bmm(weights[:, :, part], values[:, part])
    return result


def _padded(rows: torch.Tensor, tile: int) -> torch.Tensor:
    """`[n, rows, d]` with the last row repeated to whole tiles."""
    extra = _whole(rows.shape[1], tile) - rows.shape[1]
    return torch.cat([rows, rows[:, -1:].expand(-1, extra, -1)], dim=1) if extra else rows


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit
