"""The library's eager attention for packed batches, with the soft cap that it leaves out (Gemma 2).

`paged|eager` passes over `softcap` without a word, and small scores hide it: up to a tenth of the cap the scores
change by less than 0.4 %. So models with a cap get this function, and all others the library's own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.eager_paged import eager_paged_attention_forward, repeat_kv

NAME = "paged|eager"


def register() -> None:
    """Makes the function the library's `paged|eager`; safe to call again."""
    AttentionInterface.register(NAME, paged_eager_attention)


def paged_eager_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of packed rows to all cached keys: `softmax(softcap * tanh(q . k * scaling / softcap) + mask) . v`.

    Args:
        module: The attention module; its `layer_idx` names the cache.
        query: `[1, heads, rows, head_dim]`.
        key: New keys `[1, kv_heads, rows, head_dim]`; the cache turns them into all keys.
        value: New values, shaped like `key`.
        attention_mask: `[1, 1, rows, keys]`, added to the scores; keeps the requests apart.
        scaling: Of the scores.
        softcap: Bound of the scores' size; None means none.
        kwargs: What continuous batching passes along: `cache`, ….

    Returns:
        `[1, rows, heads, head_dim]`, and the weights `[1, heads, rows, keys]`.
    """
    if softcap is None:
        return eager_paged_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling, **kwargs
        )
    keys, values = kwargs["cache"].update(
        key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
    )
    groups = query.shape[1] // keys.shape[1]
    keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
    scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
    scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), weights
