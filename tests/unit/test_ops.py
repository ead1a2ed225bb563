"""Operations on the residual stream, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering import ops
from steering_engine.steering.ops import Effect, effect_of
from steering_spec import Ablate, Add, Clamp, Operation

INFINITY = math.inf
E1 = torch.tensor([[1.0, 0.0]])


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_add_moves_each_row_along_its_own_direction_by_its_own_strength() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(
        ops.add(hidden, directions, numbers(0.5, -2.0)), torch.tensor([[1.5, 2.0], [3.0, 2.0]])
    )


def test_add_norm_preserving_rescales_the_sum_to_the_norm_before() -> None:
    # (3, 4) has norm 5; (3, 4) + 3 * (1, 0) = (6, 4), rescaled by 5 / sqrt(52).
    steered = ops.add_norm_preserving(torch.tensor([[3.0, 4.0]]), E1, numbers(3.0))
    assert torch.equal(steered, torch.tensor([[6.0, 4.0]]) * (5 / torch.tensor(52.0).sqrt()))


def test_a_sum_of_zero_stays_zero() -> None:
    assert torch.equal(ops.add_norm_preserving(E1, E1, numbers(-1.0)), torch.zeros(1, 2))
    assert torch.equal(ops.add_norm_preserving(torch.zeros(1, 2), E1, numbers(2.0)), torch.zeros(1, 2))


@pytest.mark.parametrize(("fraction", "left"), [(1.0, 0.0), (0.5, 1.5), (2.0, -3.0)])
def test_ablate_takes_a_fraction_of_the_coordinate_away(fraction: float, left: float) -> None:
    steered = ops.ablate(torch.tensor([[3.0, 4.0]]), E1, numbers(fraction))
    assert torch.equal(steered, torch.tensor([[left, 4.0]]))


@pytest.mark.parametrize(
    ("low", "high", "coordinate", "expected"),
    [
        (-1.0, 2.0, 3.0, 2.0),
        (-1.0, 2.0, -3.0, -1.0),
        (-1.0, 2.0, 1.5, 1.5),
        (-INFINITY, 2.0, -50.0, -50.0),
        (4.0, INFINITY, -50.0, 4.0),
        (2.0, 2.0, 7.0, 2.0),
    ],
)
def test_clamp_bounds_the_coordinate_and_nothing_else(
    low: float, high: float, coordinate: float, expected: float
) -> None:
    steered = ops.clamp(torch.tensor([[coordinate, 4.0]]), E1, numbers(1.0), numbers(low), numbers(high))
    assert torch.equal(steered, torch.tensor([[expected, 4.0]]))


def test_clamp_may_go_half_the_way() -> None:
    steered = ops.clamp(torch.tensor([[6.0, 4.0]]), E1, numbers(0.5), numbers(0.0), numbers(2.0))
    assert torch.equal(steered, torch.tensor([[4.0, 4.0]]))


def test_a_row_within_its_bounds_keeps_its_exact_values() -> None:
    torch.manual_seed(0)
    hidden, directions = torch.randn(5, 16), torch.nn.functional.normalize(torch.randn(5, 16))
    bounds = torch.full((5,), INFINITY)
    assert torch.equal(ops.clamp(hidden, directions, torch.ones(5), -bounds, bounds), hidden)


def test_arguments_are_left_as_they_were() -> None:
    hidden, directions, strengths = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)
    ops.add(hidden, directions, strengths)
    ops.steer(hidden, directions, torch.ones(2, 5))
    assert torch.equal(hidden, torch.ones(2, 3))
    assert torch.equal(directions, torch.ones(2, 3))
    assert torch.equal(strengths, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_are_formed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, directions = torch.randn(5, 16).to(dtype), torch.randn(5, 16)
    strengths = torch.randn(5)
    steered = ops.add(hidden, directions, strengths)
    assert steered.dtype == dtype
    assert torch.equal(steered, (hidden.float() + strengths[:, None] * directions).to(dtype))


def test_strength_zero_keeps_the_exact_values() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 8, dtype=torch.bfloat16)
    assert torch.equal(ops.add(hidden, torch.randn(4, 8), torch.zeros(4)), hidden)
    assert torch.equal(ops.ablate(hidden, torch.randn(4, 8), torch.zeros(4)), hidden)


def test_no_rows_are_no_trouble() -> None:
    assert ops.add(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0)).shape == (0, 8)
    assert ops.steer(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0, 5)).shape == (0, 8)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Add(), Effect(6.0)),
        (Add(norm_preserved=True), Effect(6.0, norm_preserved=1.0)),
        (Ablate(), Effect(0.0, 2.0)),
        (Clamp(min=-1.0), Effect(0.0, 2.0, -1.0, INFINITY)),
        (Clamp(max=5.0), Effect(0.0, 2.0, -INFINITY, 5.0)),
        (Clamp(-1.0, 5.0), Effect(0.0, 2.0, -1.0, 5.0)),
    ],
)
def test_only_add_multiplies_the_calibrated_strength(operation: Operation, expected: Effect) -> None:
    assert effect_of(operation, 2.0, calibrated_strength=3.0) == expected


finite = st.floats(-100, 100, width=32)
effects = st.one_of(
    finite.map(Effect),
    st.builds(lambda s: Effect(s, norm_preserved=1.0), finite),
    st.builds(lambda f: Effect(0.0, f), finite),
    st.builds(lambda f, a, b: Effect(0.0, f, min(a, b), max(a, b)), finite, finite, finite),
    st.builds(lambda f, a: Effect(0.0, f, a, INFINITY), finite, finite),
)


def one_operation(hidden: torch.Tensor, directions: torch.Tensor, effect: Effect) -> torch.Tensor:
    if effect.norm_preserved:
        return ops.add_norm_preserving(hidden, directions, numbers(effect.strength))
    if effect.adds_only:
        return ops.add(hidden, directions, numbers(effect.strength))
    return ops.clamp(hidden, directions, numbers(effect.fraction), numbers(effect.low), numbers(effect.high))


@given(st.lists(effects, min_size=1, max_size=9), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=200)
def test_a_row_among_others_gets_the_bits_of_its_own_operation_alone(
    drawn: list[Effect], dtype: torch.dtype
) -> None:
    torch.manual_seed(len(drawn))
    hidden = torch.randn(len(drawn), 48).to(dtype)
    directions = torch.nn.functional.normalize(torch.randn(len(drawn), 48))
    together = ops.steer(hidden, directions, torch.tensor(drawn))
    for row, effect in enumerate(drawn):
        own = slice(row, row + 1)
        assert torch.equal(together[own], one_operation(hidden[own], directions[own], effect))
