"""Mixtures of experts whose every row has the same bits in any batch.

How many rows an expert gets depends on the neighbours of a row, so each expert's rows are made up to whole tiles
(`steering_engine.engine.stability`). Registered through the library's own `ExpertsInterface`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from steering_engine.engine import attention

NAME = "whole_tiles"


def register() -> None:
    """Makes the function known to transformers under `NAME`; safe to call again."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, whole_tiles_experts)


@contextmanager
def whole_tiles(config: Any) -> Iterator[None]:
    """Lets the experts of a model with this (text) configuration compute whole tiles in the forwards inside."""
    ordinary = config._experts_implementation  # noqa: SLF001 -- the library's own switch
    config._experts_implementation = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._experts_implementation = ordinary  # noqa: SLF001


def whole_tiles_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts make of each row, weighted, summed in the order of the experts.

    Args:
        module: The library's module of expert weights.
        hidden_states: `[rows, hidden]`.
        top_k_index: `[rows, k]` experts of each row.
        top_k_weights: `[rows, k]`.

    Returns:
        `[rows, hidden]`.
    """
    tile = attention.current_layout().tile
    output = torch.zeros_like(hidden_states)
    for expert in sorted(set(top_k_index.flatten().tolist())):
        rows, place = torch.where(top_k_index == expert)
        padded = torch.cat([rows, rows[-1:].expand(-len(rows) % tile)])
        inner = _linear(
            module, "gate_up_proj" if module.has_gate else "up_proj", expert, hidden_states[padded]
        )
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)  # noqa: SLF001 -- the library's own
        result = _linear(module, "down_proj", expert, inner)
        if module.has_post_expert_norm:
            result = module.post_expert_norm(result)
        output.index_add_(0, rows, result[: len(rows)] * top_k_weights[rows, place, None])
    return output


def _linear(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    if module.is_transposed:
        weight = weight.transpose(0, 1)
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return torch.nn.functional.linear(rows, weight, bias)
