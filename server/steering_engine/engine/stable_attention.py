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
from typing import NamedTuple

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

    queries: Sequence[int]
    keys: Sequence[int]
    ends: Sequence[int]


class _Prompt(NamedTuple):
    """Several rows of one request: its rows, its keys, empty slots before and after them, and hidden slots."""

    rows: slice
    keys: slice
    before: int
    after: int
    hidden: torch.Tensor


class _Newest(NamedTuple):
    """The newest row of each of some requests: the rows, the key rows at their slots, and what is added to scores."""

    rows: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Arrangement:
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
    prompts, newest = [], []
    for request, end in enumerate(segments.ends):
        rows = slice(*segments.queries[request : request + 2])
        keys = slice(*segments.keys[request : request + 2])
        if rows.stop - rows.start == 1:
            newest.append((rows.start, keys.start, keys.stop - keys.start, end))
        else:
            prompts.append(_prompt(rows, keys, end, window))
    return Arrangement(tuple(prompts), _newest(newest, kv_heads, window) if newest else None)


def _prompt(rows: slice, keys: slice, end: int, window: int | None) -> _Prompt:
    count, length = rows.stop - rows.start, keys.stop - keys.start
    base = (end - length) // _BLOCK * _BLOCK
    before = end - length - base
    slots = torch.arange(_whole(end - base, _BLOCK))
    positions = torch.arange(end - count, end)
    hidden = slots + base > positions[:, None]
    hidden |= slots < before
    if window is not None:
        hidden |= slots + base <= positions[:, None] - window
    return _Prompt(rows, keys, before, len(slots) - before - length, hidden)


def _newest(requests: Sequence[tuple[int, int, int, int]], kv_heads: int, window: int | None) -> _Newest:
    """From row, first key, number of keys, and position after the newest one, of each request."""
    rows, starts, lengths, ends = torch.tensor(requests).unbind(1)
    first = ends - lengths  # position of the oldest key
    base = first // _BLOCK * _BLOCK
    before = (first - base)[:, None]
    slots = torch.arange(_whole(int((ends - base).max()), _BLOCK))
    # A slot without a key repeats one of the request's own: finite, so that its weight of 0 makes it nothing.
    index = starts[:, None] + (slots - before).clamp(min=0).minimum(lengths[:, None] - 1)
    hidden = (slots < before) | (slots >= before + lengths[:, None])
    if window is not None:
        hidden |= slots + base[:, None] < ends[:, None] - window
    return _Newest(
        rows,
        index * kv_heads + torch.arange(kv_heads)[:, None, None],
        torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf).repeat(kv_heads, 1)[:, None],
    )


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
    own_keys = _gathered("keys", keys, newest.places)
    own_values = _gathered("values", values, newest.places)
    result = _weigh(rows, own_keys, own_values, newest.mask, scale)
    result = result[:, :group].reshape(kv_heads, requests, group, -1)
    return result.transpose(0, 1).reshape(requests, heads, -1)


def _gathered(name: str, cached: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`[kv_heads, keys, d]` at places `[kv_heads, requests, slots]`: `[kv_heads * requests, slots, d]`."""
    heads, count, width = cached.shape
    # The cache keeps all heads of a position together, so this is a view and every row one copy of memory.
    rows = cached.transpose(0, 1).reshape(count * heads, width)
    found = scratch(name, (heads * places.shape[1], places.shape[2], width), cached)
    torch.index_select(rows, 0, places.flatten(), out=found.view(-1, width))
    return found


def _rows_of_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prompt: _Prompt, scale: float, tile: int
) -> torch.Tensor:
    """Several query rows of one request: of `[heads, rows, head_dim]` its own as `[own rows, heads, value_dim]`."""
    heads, _, head_dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    count, slots = prompt.hidden.shape
    around = (0, 0, prompt.before, prompt.after)
    keys, values = (pad(one[:, prompt.keys], around) for one in (keys, values))
    rows = query[:, prompt.rows].reshape(kv_heads, group, count, head_dim).transpose(1, 2)
    at_once = max(1, _SCORES_AT_ONCE // (heads * slots))
    outputs = []
    for start in range(0, count, at_once):
        part = slice(start, min(start + at_once, count))
        own = rows[:, part].reshape(kv_heads, -1, head_dim)
        mask = torch.where(prompt.hidden[part], -torch.inf, 0.0).repeat_interleave(group, dim=0)
        extra = _whole(own.shape[1], tile) - own.shape[1]
        mask = torch.cat([mask, mask[-1:].expand(extra, -1)])
        result = _weigh(_padded(own, tile), keys, values, mask[None], scale)
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
