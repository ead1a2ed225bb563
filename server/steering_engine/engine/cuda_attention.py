"""Attention for packed batches on a CUDA device: torch's own variable-length flash attention.

The library's `sdpa` needs a dense mask of all rows against all cached tokens, and its flash path another package. This
function needs neither: it hands the bounds of the requests to the kernel that torch brings along, and can be captured
in a CUDA graph. Forwards that are not packed (scoring, recording, training of vectors) go to the library's `sdpa`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from steering_engine.engine.attention import packed_mask
from steering_engine.loading import LoadedModel

NAME = "per_request_varlen"

_DTYPES = (torch.bfloat16, torch.float16)
_MOST_HEAD_DIM = 256
_NAMES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why this attention can't serve a model; None when it can."""
    model = loaded.model
    if model.device.type != "cuda":
        return f"it runs on {model.device.type}"
    if model.dtype not in _DTYPES:
        return f"it runs in {str(model.dtype).removeprefix('torch.')}; bfloat16 or float16 is needed"
    if model.config._attn_implementation not in ("sdpa", NAME):  # noqa: SLF001 -- the library's own switch
        return f"its attention is {model.config._attn_implementation}"  # noqa: SLF001
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or loaded.hidden_size // heads)
    if head_dim > _MOST_HEAD_DIM or head_dim % 8:
        return f"its heads are {head_dim} wide; a multiple of 8 up to {_MOST_HEAD_DIM} is needed"
    return None


def register() -> None:
    """Makes the function known to transformers under `NAME`; safe to call again."""
    AttentionInterface.register(NAME, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, packed_mask)


def varlen_attention(
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
    keys, values = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    window = kwargs.get("sliding_window")
    groups = {"enable_gqa": query.shape[1] != keys.shape[1]} if _NAMES_GROUPS else {}
    output: Any = varlen_attn(
        query[0].transpose(0, 1),
        keys[0].transpose(0, 1),
        values[0].transpose(0, 1),
        kwargs["cu_seq_lens_q"],
        kwargs["cu_seq_lens_k"],  # the cache has put this layer's own lengths here
        int(kwargs["max_length_q"]),
        int(kwargs["max_length_k"]),
        scale=kwargs.get("scaling"),
        # A row sees itself and what is before it; the library counts itself into the window, the kernel does not.
        window_size=(-1 if window is None else window - 1, 0),
        **groups,
    )
    return output[None], None
