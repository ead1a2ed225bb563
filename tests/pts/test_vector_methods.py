"""What each method makes of recorded states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_pts.errors import MethodError
from steering_pts.vectors.building import made_of
from steering_pts.vectors.events import PivotEvent, problem_folds, problem_halves
from steering_pts.vectors.methods import (
    METHODS,
    Material,
    context_difference,
    first_component,
    paired_difference,
    split_half_cosine,
)
from steering_pts.vectors.optimising import optimised
from steering_pts.vectors.reading import Reading, record_rows
from tests.support.models import FAMILIES, tiny_model
from tests.support.pivots import event

BLOCKS = (0, 1, 2)


def states(count: int, hidden: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))


def material(model: SteeredModel, events: Sequence[PivotEvent], seed: int = 0) -> Material:
    """Decisions with random states at block 1."""
    prefix, chosen, rejected = (states(len(events), 32, seed + number) for number in range(3))
    return Material(model.loaded, events, 1, prefix, chosen, rejected, 1.0)


# --- differences ------------------------------------------------------------------------------------------------------


def test_the_paired_difference_is_the_weighted_mean_of_differences() -> None:
    chosen = torch.tensor([[3.0, 1.0], [1.0, 5.0]])
    rejected = torch.tensor([[1.0, 1.0], [1.0, 1.0]])

    direction = paired_difference(chosen, rejected, torch.tensor([0.75, 0.25]))

    assert direction.tolist() == [1.5, 1.0]


def test_weights_count_by_their_ratio_alone() -> None:
    chosen, rejected = torch.eye(2), torch.zeros(2, 2)

    one, other = (paired_difference(chosen, rejected, torch.tensor(w)) for w in ([0.25, 0.75], [1.0, 3.0]))

    assert torch.equal(one, other)


def test_the_context_difference_is_that_of_the_weighted_means() -> None:
    prefix = torch.tensor([[4.0, 0.0], [0.0, 8.0], [1.0, 1.0], [3.0, 5.0]])

    direction = context_difference(prefix, torch.tensor([0.75, 0.25, -0.5, -0.5]))

    assert direction.tolist() == [3.0 - 2.0, 2.0 - 3.0]


@pytest.mark.parametrize(("sign", "kind"), [(1, "better"), (-1, "worse")])
def test_without_both_kinds_of_context_there_is_no_difference(sign: int, kind: str) -> None:
    with pytest.raises(MethodError, match=f"all 3 here turned out for the {kind}"):
        context_difference(states(3), sign * torch.tensor([0.5, 0.3, 0.2]))


# --- the first component ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "hidden"), [(40, 6), (6, 40)])
def test_the_first_component_is_that_of_a_singular_value_decomposition(count: int, hidden: int) -> None:
    differences, weights = states(count, hidden) + 0.3, torch.rand(count) + 0.1

    found = first_component(differences, torch.zeros_like(differences), weights).double()

    shares = weights.double() / weights.double().sum()
    expected = torch.linalg.svd(shares.sqrt()[:, None] * differences.double())[2][0]
    projections = differences.double() @ (found / found.norm())
    assert abs(float(found @ expected) / float(found.norm())) == pytest.approx(1)
    assert float(shares @ projections) == pytest.approx(float(found.norm()), rel=1e-5)


@given(st.integers(1, 9), st.integers(0, 50), st.floats(0.1, 10))
def test_pairs_that_all_differ_alike_have_that_difference(count: int, seed: int, scale: float) -> None:
    difference = scale * states(1, 5, seed)[0]
    rejected = states(count, 5, seed + 1)

    found = first_component(rejected + difference, rejected, torch.ones(count))

    assert torch.allclose(found, difference, rtol=1e-3, atol=1e-4)


@given(st.integers(1, 12), st.integers(0, 50))
def test_it_points_from_worse_to_better(count: int, seed: int) -> None:
    chosen, rejected = states(count, 5, seed), states(count, 5, seed + 100)

    found = first_component(chosen, rejected, torch.ones(count))

    assert float((chosen - rejected).mean(0) @ found) >= 0
    assert torch.allclose(first_component(rejected, chosen, torch.ones(count)), -found, atol=1e-5)


def test_a_long_stray_difference_turns_the_mean_more_than_the_component() -> None:
    along, stray = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    chosen = torch.stack([along] * 9 + [stray])
    rejected, weights = torch.zeros_like(chosen), torch.ones(10)

    component = first_component(chosen, rejected, weights)
    mean = paired_difference(chosen, rejected, weights)

    assert component[1].abs() / component[0] < 1e-6
    assert mean[1] / mean[0] > 0.2


def test_pairs_without_a_difference_have_no_component() -> None:
    same = states(4)

    assert not first_component(same, same, torch.ones(4)).any()


# --- learning on the frozen model -------------------------------------------------------------------------------------

EVENTS = [event((5, 6, 7)), event((9, 8), 40, 41, 0.3), event((11, 12, 13, 14, 15), 50, 51, -0.2)]


def preference(loaded: LoadedModel, events: Sequence[PivotEvent], block: int, vector: torch.Tensor) -> float:
    """Weighted mean of log p(chosen) - log p(rejected) with the vector added at the decisions' rows."""
    total = 0.0

    def add(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = hidden.clone()
        steered[:, -1] += vector
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    for one in events:
        handle = find_blocks(loaded.model)[block].register_forward_hook(add)
        with torch.no_grad():
            output = loaded.model(torch.tensor([one.prefix_ids]), use_cache=False)
        handle.remove()
        logprobs = output.logits[0, -1].double().log_softmax(-1)
        total += one.weight * (logprobs[one.chosen_id] - logprobs[one.rejected_id]).item()
    return total / sum(one.weight for one in events)


def norm_at(loaded: LoadedModel, block: int) -> float:
    rows = record_rows(loaded, [Reading.last(one.prefix_ids) for one in EVENTS], [block])
    return float(rows[block].norm(dim=-1).mean())


@pytest.mark.parametrize("block", BLOCKS)
def test_the_learned_vector_raises_the_preference_for_the_better_token(
    model: SteeredModel, block: int
) -> None:
    loaded = model.loaded

    vector = optimised(loaded, EVENTS, block, norm_at(loaded, block))

    before = preference(loaded, EVENTS, block, torch.zeros_like(vector))
    assert preference(loaded, EVENTS, block, vector) > before + 0.05
    assert preference(loaded, EVENTS, block, -vector) < before


LONG = [event(range(5, 5 + length), 40 + length, 60 + length) for length in (1, 3, 7, 12, 12, 30)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_step_with_kept_keys_and_values_is_that_of_whole_forwards(family: str) -> None:
    """The first step of Adam goes by the gradient's sign alone, and the second by its size too."""
    loaded = LoadedModel(family, tiny_model(family).requires_grad_(requires_grad=False), None, "", "")

    found = optimised(loaded, LONG, 1, 2.0, steps=2)

    assert torch.allclose(found, learned_by_whole_forwards(loaded, LONG, 1, 2.0, steps=2), atol=2e-5)


def learned_by_whole_forwards(
    loaded: LoadedModel, events: Sequence[PivotEvent], block: int, norm: float, steps: int
) -> torch.Tensor:
    """The same loss, a decision at a time, without a cache."""
    vector = torch.zeros(loaded.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([vector], lr=0.04)
    total = sum(one.weight for one in events)

    def add(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        row = torch.zeros(hidden.shape[1], 1)
        row[-1] = norm
        steered = hidden + row * vector
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    handle = find_blocks(loaded.model)[block].register_forward_hook(add)
    for _ in range(steps):
        loss = 0.02 * vector.norm()
        for one in events:
            logits = loaded.model(torch.tensor([one.prefix_ids]), use_cache=False).logits[0, -1]
            better = logits[one.chosen_id] - logits[one.rejected_id]
            loss = loss - one.weight / total * torch.nn.functional.logsigmoid(better)
        adam.zero_grad()
        loss.backward()
        adam.step()
    handle.remove()
    return (norm * vector).detach()


def test_it_is_the_same_in_parts_and_without_room_for_keys_and_values(model: SteeredModel) -> None:
    whole = optimised(model.loaded, LONG, 1, 2.0, steps=5)

    parts = optimised(model.loaded, LONG, 1, 2.0, steps=5, tokens_per_forward=20)
    no_room = optimised(model.loaded, LONG, 1, 2.0, steps=5, cache_bytes=0)

    assert torch.equal(no_room, whole)
    assert torch.allclose(parts, whole, atol=1e-4)


def test_learning_a_vector_leaves_the_model_as_it_was(model: SteeredModel) -> None:
    loaded = model.loaded
    ids = torch.tensor([[5, 6, 7, 8]])
    before = loaded.model(ids).logits
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    optimised(loaded, EVENTS, 0, 1.0, steps=3)

    assert torch.equal(loaded.model(ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


# --- all methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_same_vector_every_time(model: SteeredModel, method: str) -> None:
    one, other = (METHODS[method](material(model, EVENTS)) for _ in range(2))

    assert one.shape == (32,)
    assert one.any()
    assert torch.equal(one, other)


def test_a_part_has_the_states_of_its_decisions(model: SteeredModel) -> None:
    whole = material(model, EVENTS)

    part = whole.part([2, 0])

    assert part.events == [EVENTS[2], EVENTS[0]]
    assert part.weights.tolist() == pytest.approx([0.2, 0.5])
    assert torch.equal(part.prefix, whole.prefix[[2, 0]])
    assert torch.equal(part.chosen, whole.chosen[[2, 0]])
    assert torch.equal(part.rejected, whole.rejected[[2, 0]])


# --- reliability ------------------------------------------------------------------------------------------------------

problems = st.lists(st.sampled_from("abcdefgh"), max_size=30)


@given(problems)
def test_halves_share_no_problem_and_are_as_equal_as_the_largest_problem_allows(names: list[str]) -> None:
    halves = problem_halves([event((1,), problem=name) for name in names])

    if len(set(names)) < 2:
        assert halves is None
        return
    assert halves is not None
    assert sorted(halves[0] + halves[1]) == list(range(len(names)))
    assert not {names[i] for i in halves[0]} & {names[i] for i in halves[1]}
    assert abs(len(halves[0]) - len(halves[1])) <= max(names.count(name) for name in names)


@given(problems, st.integers(1, 6))
def test_folds_share_no_problem(names: list[str], most: int) -> None:
    folds = problem_folds(names, most)

    assert len(set(zip(names, folds, strict=True))) == len(set(names))
    assert set(folds) == set(range(min(most, len(set(names)))))


def test_halves_that_agree_have_cosine_one_and_opposite_ones_minus_one(model: SteeredModel) -> None:
    events = [event((1, 2), problem=name) for name in "abab"]
    whole = material(model, events)

    def by_problem(part: Material) -> torch.Tensor:
        ones = torch.ones(4)
        return ones if part.events[0].problem_id == "a" else -ones

    assert split_half_cosine(lambda part: torch.ones(4) * len(part.events), whole) == pytest.approx(1)
    assert split_half_cosine(by_problem, whole) == pytest.approx(-1)


def test_what_has_no_halves_has_no_reliability(model: SteeredModel) -> None:
    of_one_problem = material(model, [event((1, 2), problem="a")] * 4)
    one_sided = material(
        model, [event((1, 2), problem="a", effect=0.5), event((1, 2), problem="b", effect=-0.5)]
    )

    assert split_half_cosine(METHODS["paired_difference"], of_one_problem) is None
    assert METHODS["context_difference"](one_sided).any()
    assert split_half_cosine(METHODS["context_difference"], one_sided) is None


@pytest.mark.parametrize(("length", "is_found"), [(2e-6, False), (0.0, False), (2e-3, True)])
def test_what_rounding_makes_of_equal_states_is_no_direction(
    model: SteeredModel, length: float, is_found: bool
) -> None:
    whole = material(model, [event((1, 2), problem=name) for name in "abab"])

    def method(part: Material) -> torch.Tensor:
        return length * torch.eye(4)[len({one.problem_id for one in part.events})]

    found = made_of(method, whole)

    assert (found is not None) is is_found
    assert (split_half_cosine(method, whole) is not None) is is_found
    longer = dataclasses.replace(whole, residual_norm=1e4)
    assert made_of(method, longer) is None, "it is the states' own length that rounding goes by"
