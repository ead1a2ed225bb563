"""The library's eager attention for packed batches, with what it leaves out.

- The soft cap (Gemma 2). `paged|eager` passes over `softcap` without a word, and small scores hide it: up to a tenth of
  the cap the scores change by less than 0.4 %.
- Requests that spoil nobody. It is one product over the keys of all requests, in which a mask makes the weights of
  others zero. But zero times what is no number is no number: a request that is steered out of the numbers would take
  all others along, and the pages of the cache that they share.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface
from transformers.integrations.eager_paged import eager_paged_attention_forward, repeat_kv

NAME = "paged|eager"


def register() -> None:
    """Makes the function the library's `paged|eager`; safe to call again."""
    AttentionInterface.register(NAME, paged_eager_attention)


class _Stored(NamedTuple):
    """Keys and values that are in the cache already, in the place of the cache."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values."""
        return self.keys, self.values


def paged_eager_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of packed rows to all cached keys: `softmax(cap(q . k * scaling) + mask) . v`.

    Args:
        module: The attention module; its `layer_idx` names the cache, and its sinks are counted.
        query: `[1, heads, rows, head_dim]`.
        key: New keys `[1, kv_heads, rows, head_dim]`; the cache turns them into all keys.
        value: New values, shaped like `key`.
        attention_mask: `[1, 1, rows, keys]`, added to the scores; keeps the requests apart.
        scaling: Of the scores.
        softcap: Bound of the scores' size, `softcap * tanh(score / softcap)`; None means none.
        kwargs: What continuous batching passes along: `cache`, `cu_seq_lens_q`, `cu_seq_lens_k`, ….

    Returns:
        `[1, rows, heads, head_dim]`, and the weights `[1, heads, rows, keys]`, or None where they were not computed as
        a whole.
    """
    keys, values = kwargs["cache"].update(
        key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
    )
    attend = _library if softcap is None else partial(_capped, softcap=softcap)
    # The sum is no number, or infinite, wherever a part is.
    total = keys.sum(dtype=torch.float32) + values.sum(dtype=torch.float32)
    if attention_mask is None or bool(total.isfinite()):
        return attend(module, query, keys, values, attention_mask, scaling)
    output = query.new_zeros(1, query.shape[2], query.shape[1], values.shape[-1])
    row_bounds, key_bounds = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()
    for own_rows, own_keys in zip(pairwise(row_bounds), pairwise(key_bounds), strict=True):
        rows, columns = slice(*own_rows), slice(*own_keys)
        mask = attention_mask[..., rows, columns]
        output[:, rows], _ = attend(
            module, query[:, :, rows], keys[:, :, columns], values[:, :, columns], mask, scaling
        )
    return output, None


def _library(
    module: torch.nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    stored = _Stored(keys, values)
    return eager_paged_attention_forward(  # type: ignore[no-any-return]
        module, query, keys, values, mask, scaling, cache=stored
    )


def _capped(
    module: torch.nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    *,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    del module  # no model has both a cap and sinks
    groups = query.shape[1] // keys.shape[1]
    keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
    scores = softcap * torch.tanh(torch.matmul(query, keys.transpose(2, 3)) * scaling / softcap)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), weights
