"""Attention for packed batches on any device, request by request instead of one dense mask over all requests.

Continuous batching packs the rows of all requests into one sequence. The library's `sdpa` then needs a dense mask of
all rows against all cached tokens, of which most is masked out; at 128 concurrent requests that halves the
throughput. This function, registered through the library's own `AttentionInterface`, computes each request's
attention alone. Forwards that are not packed (scoring, recording, training of vectors) go to the library's `sdpa`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from steering_engine.engine.stable_attention import Arrangement, Segments, arrange, attend

NAME = "per_request_sdpa"


class StoredKeys(NamedTuple):
    """A layer's keys and values of all requests of a packed forward, in a cache on the CPU.

    Attributes:
        keys: `[kv_heads, n, head_dim]`.
        values: `[kv_heads, n, value_dim]`.
        bounds: `[requests + 1]` bounds of the requests' keys.
        places: Where those keys are in `keys`, one request after the other; None when they stand there in order.
        group: Number of the layers that have the same bounds and places.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor
    places: torch.Tensor | None
    group: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """What a packed forward is made of.

    Attributes:
        counts: Rows of each request; what follows them only fills the last tile.
        ends: Position after the newest row, of each request.
        tile: Rows come in multiples of it, and every row has the same bits in any batch; 0 promises nothing.
    """

    counts: tuple[int, ...]
    ends: tuple[int, ...]
    tile: int = 0
    _arrangements: dict[tuple[object, ...], Arrangement] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return sum(self.counts)

    def arrangement(self, stored: StoredKeys, window: int | None) -> Arrangement:
        """Where rows and keys go in layers of a group: found once for the forward, not by each layer."""
        kind = (stored.group, window)
        found = self._arrangements.get(kind)
        if found is None:
            rows = list(accumulate(self.counts, initial=0))
            places = None if stored.places is None else stored.places.numpy()
            segments = Segments(rows, stored.bounds.numpy(), self.ends, places)
            found = self._arrangements[kind] = arrange(segments, stored.keys.shape[0], window)
        return found


_layout: ContextVar[PackedLayout | None] = ContextVar("packed_layout", default=None)


def current_layout() -> PackedLayout:
    """The layout of the packed forward that is running.

    Raises:
        LookupError: None is.
    """
    layout = _layout.get()
    if layout is None:
        raise LookupError("no packed forward is running")
    return layout


@contextmanager
def packed_forward(model: Any, implementation: str, layout: PackedLayout) -> Iterator[None]:
    """Marks the forwards inside as packed: no dense mask is made for them.

    Args:
        model: The model; its configuration names the attention of ordinary forwards.
        implementation: The attention of packed forwards. The library's `paged|eager` can't do ordinary ones, so a
            model that runs it is switched for the forwards inside.
        layout: What they are made of.
    """
    token = _layout.set(layout)
    ordinary = model.config._attn_implementation  # noqa: SLF001 -- the library's own switch
    if implementation != ordinary:
        model.config._attn_implementation = implementation  # noqa: SLF001
    try:
        yield
    finally:
        if implementation != ordinary:
            model.config._attn_implementation = ordinary  # noqa: SLF001
        _layout.reset(token)


def register() -> None:
    """Makes the function known to transformers under `NAME`; safe to call again."""
    AttentionInterface.register(NAME, per_request_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, packed_mask)


def packed_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for packed forwards, whose attention keeps the requests apart itself; else that of `sdpa`."""
    return None if _layout.get() else sdpa_mask(*args, **kwargs)


def per_request_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of packed requests, each against its own cached keys.

    Args:
        module: The attention module; its `layer_idx` names the cache.
        query: `[1, heads, rows, head_dim]`.
        key: New keys `[1, kv_heads, rows, head_dim]`; the cache turns them into all keys.
        value: New values, shaped like `key`.
        attention_mask: Only for forwards that are not packed.
        kwargs: What continuous batching passes along: `cache`, `cu_seq_lens_q`, `cu_seq_lens_k`, `scaling`, ….

    Returns:
        `[1, rows, heads, head_dim]`, and None in place of weights.
    """
    cache = kwargs.get("cache")
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    layout = current_layout()
    if layout.tile:
        return _stable(module, query, key, value, layout, kwargs), None
    keys, values = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    extra = query.shape[2] - layout.rows
    if extra:
        query = query[:, :, : layout.rows]
    window = kwargs.get("sliding_window")
    scale = kwargs.get("scaling")
    query_starts = kwargs["cu_seq_lens_q"]
    key_starts = kwargs["cu_seq_lens_k"]  # the cache has put this layer's own lengths here
    if query.shape[2] == query_starts.numel() - 1 and int(kwargs["max_length_q"]) == 1:
        output = _decode(query[0], keys[0], values[0], key_starts, scale, window)
    else:
        output = _mixed(
            query[0], keys[0], values[0], query_starts.tolist(), key_starts.tolist(), scale, window
        )
    return (pad(output, (0, 0, 0, 0, 0, extra)) if extra else output)[None], None


def _stable(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """The same in whole tiles, `[1, rows, heads, head_dim]`; rows that only fill the last tile get zeros."""
    extra = query.shape[2] - layout.rows
    if extra:
        query, key, value = (one[:, :, : layout.rows] for one in (query, key, value))
    stored: StoredKeys = kwargs["cache"].store(key, value, module.layer_idx, kwargs)
    arrangement = layout.arrangement(stored, kwargs.get("sliding_window"))
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output = attend(query[0], stored.keys, stored.values, arrangement, scale, layout.tile)
    return pad(output, (0, 0, 0, 0, 0, extra))[None] if extra else output[None]


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_starts: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """One row per request: keys are gathered into `[requests, kv_heads, longest, head_dim]` and padded by a mask."""
    heads, requests, head_dim = query.shape
    lengths = key_starts[1:] - key_starts[:-1]
    offsets = torch.arange(int(lengths.max()), device=query.device)
    # Padding repeats the request's own last key. Another request's would do as long as it is finite: a masked weight
    # of 0 times a value of infinity is no number, and one request would spoil its neighbours.
    index = (key_starts[:-1, None] + torch.minimum(offsets, lengths[:, None] - 1)).long()
    valid = offsets < lengths[:, None]
    if window is not None:
        valid &= offsets >= lengths[:, None] - window
    # Query heads that share a key head become rows of one product, so keys are never repeated.
    grouped = query.transpose(0, 1).reshape(requests, keys.shape[0], heads // keys.shape[0], head_dim)
    output = scaled_dot_product_attention(
        grouped,
        keys[:, index].transpose(0, 1),
        values[:, index].transpose(0, 1),
        attn_mask=valid[:, None, None, :],
        scale=scale,
    )
    return output.reshape(requests, heads, values.shape[-1])


def _mixed(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    query_starts: list[int],
    key_starts: list[int],
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Any number of rows per request: one product per request, causal from the end of its keys."""
    outputs = []
    for request in range(len(query_starts) - 1):
        own_query = query[:, query_starts[request] : query_starts[request + 1]]
        own_keys = keys[:, key_starts[request] : key_starts[request + 1]]
        own_values = values[:, key_starts[request] : key_starts[request + 1]]
        rows, length = own_query.shape[1], own_keys.shape[1]
        newest = torch.arange(length - rows, length, device=query.device)[:, None]
        at = torch.arange(length, device=query.device)
        valid = at <= newest
        if window is not None:
            valid &= at > newest - window
        outputs.append(
            scaled_dot_product_attention(
                own_query[None],
                own_keys[None],
                own_values[None],
                attn_mask=valid,
                scale=scale,
                enable_gqa=own_query.shape[0] != own_keys.shape[0],
            )[0]
        )
    return torch.cat(outputs, dim=1).transpose(0, 1)
