"""Attention whose every row has the same bits in any batch: decoded alone, among others, or in a prompt of any chunks.

A row's bits depend on the shapes that its products and sums are computed in. Measured with float32 and MKL: the rows
of a product agree for all numbers of rows that are multiples of a small tile, and for all numbers of products side by
side; a product over more than 192 keys is split by its length, so zeros behind its end change it. So here

- query rows come in whole tiles (`steering_engine.engine.stability` finds the tile),
- keys stand at slots that depend on their positions alone, in whole blocks of 64, with weights of exactly 0 between,
- values are summed block by block, and the blocks one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from steering_engine.engine.scratch import scratch

_BLOCK = 64
"""Slots of one product with the values; also whole vectors, so that the sum of a softmax puts a slot into the same lane
whatever the length."""
_SCORES_AT_ONCE = 1 << 22
"""Scores of a prompt that are in memory at a time: 16 MiB."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Which rows and keys of a packed batch are whose.

    Attributes:
        queries: `[requests + 1]` bounds of the query rows.
        keys: `[requests + 1]` bounds of the keys.
        ends: `[requests]` position after the newest row; the keys are those of the positions before it.
    """

    queries: list[int]
    keys: list[int]
    ends: list[int]


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    tile: int,
) -> torch.Tensor:
    """Causal attention of every request's rows to its own keys.

    Args:
        query: `[heads, rows, head_dim]`.
        keys: `[kv_heads, keys, head_dim]`.
        values: `[kv_heads, keys, value_dim]`.
        segments: Whose they are.
        scale: Of the scores.
        window: Positions that a row sees, itself included; None means all before it.
        tile: Query rows come in multiples of it.

    Returns:
        `[rows, heads, value_dim]`.
    """
    output = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
    single = []
    for request, end in enumerate(segments.ends):
        first, stop = segments.queries[request : request + 2]
        if stop - first == 1:
            single.append(request)
            continue
        start, last = segments.keys[request : request + 2]
        own = slice(start, last)
        output[first:stop] = _rows_of_one(
            query[:, first:stop], keys[:, own], values[:, own], end, scale, window, tile
        )
    if single:
        rows = torch.tensor([segments.queries[request] for request in single])
        starts = torch.tensor([segments.keys[request] for request in single])
        lengths = torch.tensor([segments.keys[request + 1] for request in single]) - starts
        ends = torch.tensor([segments.ends[request] for request in single])
        own_query = query if len(single) == query.shape[1] else query[:, rows]
        result = _one_row_each(own_query, keys, values, starts, lengths, ends, scale, window, tile)
        if len(single) == query.shape[1]:
            return result
        output[rows] = result
    return output


def _one_row_each(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int | None,
    tile: int,
) -> torch.Tensor:
    """One query row per request: `[heads, requests, head_dim]` to `[requests, heads, value_dim]`."""
    heads, requests, head_dim = query.shape
    kv_heads = keys.shape[0]
    first = ends - lengths  # position of the oldest key
    base = first // _BLOCK * _BLOCK
    before = (first - base)[:, None]
    slots = torch.arange(_whole(int((ends - base).max()), _BLOCK))
    # A slot without a key repeats one of the request's own: finite, so that its weight of 0 makes it nothing.
    index = starts[:, None] + (slots - before).clamp(min=0).minimum(lengths[:, None] - 1)
    hidden = (slots < before) | (slots >= before + lengths[:, None])
    if window is not None:
        hidden |= slots + base[:, None] < ends[:, None] - window
    # Query heads that share a key head are the rows of one product.
    rows = query.reshape(kv_heads, heads // kv_heads, requests, head_dim).transpose(1, 2)
    rows = _padded(rows.reshape(kv_heads * requests, heads // kv_heads, head_dim), tile)
    result = _weigh(
        rows,
        _gathered("keys", keys, index),
        _gathered("values", values, index),
        hidden[:, None].repeat(kv_heads, 1, 1),
        scale,
    )
    result = result[:, : heads // kv_heads].reshape(kv_heads, requests, heads // kv_heads, -1)
    return result.transpose(0, 1).reshape(requests, heads, -1)


def _gathered(name: str, cached: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`[kv_heads, keys, d]` at `[requests, slots]`: `[kv_heads * requests, slots, d]`."""
    heads, count, width = cached.shape
    # The cache keeps all heads of a position together, so this is a view and every row one copy of memory.
    rows = cached.transpose(0, 1).reshape(count * heads, width)
    places = index * heads + torch.arange(heads)[:, None, None]
    found = scratch(name, (heads * index.shape[0], index.shape[1], width), cached)
    torch.index_select(rows, 0, places.flatten(), out=found.view(-1, width))
    return found


def _rows_of_one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    end: int,
    scale: float,
    window: int | None,
    tile: int,
) -> torch.Tensor:
    """Several query rows of one request: `[heads, rows, head_dim]` to `[rows, heads, value_dim]`."""
    heads, count, head_dim = query.shape
    kv_heads, length, _ = keys.shape
    group = heads // kv_heads
    base = (end - length) // _BLOCK * _BLOCK
    before = end - length - base
    slots = torch.arange(_whole(end - base, _BLOCK))
    after = len(slots) - before - length
    keys, values = (pad(one, (0, 0, before, after)) for one in (keys, values))
    positions = torch.arange(end - count, end)
    hidden = slots + base > positions[:, None]
    hidden |= slots < before
    if window is not None:
        hidden |= slots + base <= positions[:, None] - window
    rows = query.reshape(kv_heads, group, count, head_dim).transpose(1, 2)
    at_once = max(1, _SCORES_AT_ONCE // (heads * len(slots)))
    outputs = []
    for start in range(0, count, at_once):
        part = slice(start, min(start + at_once, count))
        own = rows[:, part].reshape(kv_heads, -1, head_dim)
        mask = hidden[part].repeat_interleave(group, dim=0)
        extra = _whole(own.shape[1], tile) - own.shape[1]
        mask = torch.cat([mask, mask[-1:].expand(extra, -1)])
        result = _weigh(_padded(own, tile), keys, values, mask[None], scale)
        outputs.append(result[:, : own.shape[1]].reshape(kv_heads, part.stop - part.start, group, -1))
    return torch.cat(outputs, dim=1).transpose(0, 1).reshape(count, heads, -1)


def _weigh(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax of the scores times the values; `[n, tiles, d]`, `[n, slots, d]` and a mask that broadcasts."""
    shape = (*query.shape[:2], keys.shape[1])
    scores = torch.bmm(query, keys.transpose(1, 2), out=scratch("scores", shape, query))
    scores.mul_(scale).masked_fill_(hidden, -torch.inf)
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
