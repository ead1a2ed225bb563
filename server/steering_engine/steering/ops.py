"""Operations on the residual stream: pure functions on `[rows, hidden]`.

Each forms its result in float32 and rounds it once, to the dtype of the residual stream. `h` is a row of the residual
stream, `d` the row's unit direction, `c = h . d` its coordinate along it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from steering_spec import Add, Clamp, Operation

_TINY = torch.finfo(torch.float32).tiny


class Effect(NamedTuple):
    """Any operation as numbers: `h + (strength + fraction * (clip(c, low, high) - c)) * d`.

    Rows of one forward may have different operations; as numbers they are data, and one kernel does all of them.

    Attributes:
        strength: What is added along the direction, in residual units.
        fraction: How far the coordinate goes to its bounds; 0 leaves it alone, 1 goes all the way.
        low: Least coordinate, in residual units.
        high: Largest coordinate, in residual units.
        norm_preserved: 1 rescales the result to the norm that h had, 0 does not.
    """

    strength: float
    fraction: float = 0.0
    low: float = 0.0
    high: float = 0.0
    norm_preserved: float = 0.0

    @property
    def adds_only(self) -> bool:
        """Whether this is `add`, the one operation that needs to know nothing of the row."""
        return self.fraction == 0 and self.norm_preserved == 0


def effect_of(operation: Operation, strength: float, calibrated_strength: float) -> Effect:
    """The numbers of an operation at one block.

    Args:
        operation: What is done.
        strength: The rule's: a multiple of the calibrated strength for `Add`, a fraction for the others.
        calibrated_strength: The vector's at this block, in residual units.
    """
    if isinstance(operation, Add):
        return Effect(strength * calibrated_strength, norm_preserved=float(operation.norm_preserved))
    low, high = (operation.min, operation.max) if isinstance(operation, Clamp) else (0.0, 0.0)
    return Effect(
        0.0,
        strength,
        -math.inf if low is None else low,
        math.inf if high is None else high,
    )


def coordinate(hidden: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """`h . d` of every row: `[rows, hidden]` twice to `[rows]`, float32."""
    return (hidden.float() * directions).sum(-1)


def add(hidden: torch.Tensor, directions: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """`h + s * d` for every row (activation addition).

    Args:
        hidden: Residual stream h, `[rows, hidden]`, any floating dtype.
        directions: Unit directions d, `[rows, hidden]`, float32.
        strengths: Strengths s in residual units, `[rows]`, float32.

    Returns:
        The steered rows, `[rows, hidden]`, in the dtype of `hidden`.
    """
    return _moved(hidden.float(), directions, strengths).to(hidden.dtype)


def add_norm_preserving(
    hidden: torch.Tensor, directions: torch.Tensor, strengths: torch.Tensor
) -> torch.Tensor:
    """`(h + s * d) * |h| / |h + s * d|` for every row: the sum, rescaled to the norm that h had.

    Arguments and result are those of `add`; a sum of zero stays zero.
    """
    before = hidden.float()
    return _rescaled(_moved(before, directions, strengths), before).to(hidden.dtype)


def ablate(hidden: torch.Tensor, directions: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """`h - a * c * d` for every row: the coordinate along the direction is taken away (directional ablation).

    Args:
        hidden: Residual stream h, `[rows, hidden]`, any floating dtype.
        directions: Unit directions d, `[rows, hidden]`, float32.
        fractions: How much of the coordinate is taken away, a, `[rows]`, float32; 1 is all of it.

    Returns:
        The steered rows, `[rows, hidden]`, in the dtype of `hidden`.
    """
    zero = torch.zeros_like(fractions)
    return clamp(hidden, directions, fractions, zero, zero)


def clamp(
    hidden: torch.Tensor,
    directions: torch.Tensor,
    fractions: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    """`h + a * (clip(c, low, high) - c) * d` for every row: the coordinate along the direction is bounded.

    Args:
        hidden: Residual stream h, `[rows, hidden]`, any floating dtype.
        directions: Unit directions d, `[rows, hidden]`, float32.
        fractions: How far the coordinate goes to its bounds, a, `[rows]`, float32; 1 is all the way.
        low: Least coordinates in residual units, `[rows]`, float32; may be minus infinity.
        high: Largest coordinates in residual units, `[rows]`, float32; may be infinity.

    Returns:
        The steered rows, `[rows, hidden]`, in the dtype of `hidden`.
    """
    before = hidden.float()
    found = coordinate(before, directions)
    amounts = fractions * (found.clamp(low, high) - found)
    return _moved(before, directions, amounts).to(hidden.dtype)


def steer(hidden: torch.Tensor, directions: torch.Tensor, effects: torch.Tensor) -> torch.Tensor:
    """Any operation on each row; equal in every bit to the function of the row's own operation.

    Args:
        hidden: Residual stream, `[rows, hidden]`, any floating dtype.
        directions: Unit directions, `[rows, hidden]`, float32.
        effects: `Effect` of each row, `[rows, 5]`, float32.

    Returns:
        The steered rows, `[rows, hidden]`, in the dtype of `hidden`.
    """
    strengths, fractions, low, high, norm_preserved = effects.unbind(-1)
    before = hidden.float()
    found = coordinate(before, directions)
    amounts = strengths + fractions * (found.clamp(low, high) - found)
    moved = _moved(before, directions, amounts)
    return torch.where(norm_preserved[:, None] > 0, _rescaled(moved, before), moved).to(hidden.dtype)


def _moved(before: torch.Tensor, directions: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    return before + amounts[:, None] * directions


def _rescaled(moved: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    ratio = _norms(before) / _norms(moved).clamp(min=_TINY)
    return moved * ratio[:, None]


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(-1).sqrt()
