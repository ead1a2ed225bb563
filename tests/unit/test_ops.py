"""Operations on the residual stream, exactly."""

from __future__ import annotations

import pytest
import torch

from steering_engine.steering import ops


def test_add_moves_each_row_along_its_own_direction_by_its_own_strength() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(
        ops.add(hidden, directions, torch.tensor([0.5, -2.0])), torch.tensor([[1.5, 2.0], [3.0, 2.0]])
    )


def test_add_leaves_its_arguments_as_they_were() -> None:
    hidden, directions, strengths = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)
    ops.add(hidden, directions, strengths)
    assert torch.equal(hidden, torch.ones(2, 3))
    assert torch.equal(directions, torch.ones(2, 3))
    assert torch.equal(strengths, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_product_is_formed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, directions = torch.randn(5, 16).to(dtype), torch.randn(5, 16)
    strengths = torch.randn(5)
    steered = ops.add(hidden, directions, strengths)
    assert steered.dtype == dtype
    assert torch.equal(steered, hidden + (strengths.view(-1, 1) * directions).to(dtype))


def test_strength_zero_keeps_the_exact_values() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 8, dtype=torch.bfloat16)
    assert torch.equal(ops.add(hidden, torch.randn(4, 8), torch.zeros(4)), hidden)


def test_no_rows_are_no_trouble() -> None:
    assert ops.add(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0)).shape == (0, 8)
