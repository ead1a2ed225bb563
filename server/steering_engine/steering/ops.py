"""Operations on the residual stream: pure functions on `[rows, hidden]`."""

from __future__ import annotations

import torch


def add(hidden: torch.Tensor, directions: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """`h + s * d` for every row (activation addition).

    Args:
        hidden: Residual stream h, `[rows, hidden]`, any floating dtype.
        directions: Unit directions d, `[rows, hidden]`, float32.
        strengths: Strengths s in residual units, `[rows]`, float32.

    Returns:
        The steered rows, `[rows, hidden]`, in the dtype of `hidden`. The product is formed in float32.
    """
    return hidden + (strengths[:, None] * directions).to(hidden.dtype)
