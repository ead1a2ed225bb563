"""Probes and centroids from states that are made up, so that what they should find is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steering_pts.vectors.centroids import centroids_of, largest_cosine
from steering_pts.vectors.folds import known_steps, problem_folds, threshold_for
from steering_pts.vectors.probes import FittedProbe, probes_of

HIDDEN = 12
PROBLEMS = 20
EACH = 60


def made_up(seed: int, shift: float = 6.0) -> tuple[torch.Tensor, list[bool | None], list[str]]:
    """Steps of which one in fifteen is wanted, and lies `shift` farther along the first axis; all far from zero."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(PROBLEMS * EACH, HIDDEN, generator=generator) + 4
    wanted: list[bool | None] = [step % 15 == 0 for step in range(len(states))]
    states[::15, 0] += shift
    return states * torch.linspace(0.1, 10, HIDDEN), wanted, [f"p{s // EACH}" for s in range(len(states))]


def fires(fitted: FittedProbe, states: torch.Tensor) -> torch.Tensor:
    logit = states.double() @ fitted.probe.weight.double() + fitted.probe.bias
    return logit >= math.log(fitted.threshold / (1 - fitted.threshold))


def test_a_probe_reads_raw_states_of_problems_never_seen() -> None:
    fitted = probes_of({3: made_up(0)[0]}, *made_up(0)[1:])[3]
    states, wanted, _ = made_up(1)

    found = fires(fitted, states)

    truth = torch.tensor([bool(w) for w in wanted])
    assert found[truth].float().mean() > 0.97
    assert found[~truth].float().mean() < 0.005
    assert fitted.auc > 0.999


def test_the_rate_of_false_firings_that_was_asked_for_holds_on_problems_never_seen() -> None:
    """Where the two kinds overlap, so that it binds."""
    states, wanted, problems = made_up(0, shift=2.5)
    fitted = probes_of({0: states}, wanted, problems, false_positive_rate=0.02)[0]
    fresh = torch.cat([made_up(seed, shift=2.5)[0] for seed in range(1, 6)])
    truth = torch.tensor([bool(w) for w in wanted] * 5)

    assert fitted.false_positive_rate <= 0.02
    assert fires(fitted, fresh)[~truth].float().mean() == pytest.approx(0.02, abs=0.01)
    assert 0.2 < fitted.recall < 0.9
    assert fires(fitted, fresh)[truth].float().mean() == pytest.approx(fitted.recall, abs=0.1)


def test_what_tells_nothing_gets_a_probe_that_says_so() -> None:
    fitted = probes_of({0: made_up(0, shift=0)[0]}, *made_up(0)[1:])[0]

    assert 0.35 < fitted.auc < 0.65
    assert fitted.recall < 0.1


def test_each_block_has_its_own() -> None:
    states, wanted, problems = made_up(0)

    both = probes_of({1: states, 5: made_up(0, shift=0)[0]}, wanted, problems)

    assert list(both) == [1, 5]
    assert both[1].auc > 0.99 > both[5].auc
    assert torch.equal(both[1].probe.weight, probes_of({1: states}, wanted, problems)[1].probe.weight)


def test_steps_of_which_nothing_is_known_change_nothing() -> None:
    states, wanted, problems = made_up(0)
    unknown = [None if step % 7 == 3 else w for step, w in enumerate(wanted)]
    other = states.clone()
    other[3::7] = 1e3

    one = probes_of({0: states}, unknown, problems)[0]
    two = probes_of({0: other}, unknown, problems)[0]

    assert torch.equal(one.probe.weight, two.probe.weight)
    assert (one.probe.bias, one.threshold, one.auc) == (two.probe.bias, two.threshold, two.auc)


def test_a_coordinate_that_never_changes_has_no_part_in_it() -> None:
    states, wanted, problems = made_up(0)
    states[:, 4] = 7.0

    assert probes_of({0: states}, wanted, problems)[0].probe.weight[4] == 0


@pytest.mark.parametrize(
    ("targets", "problems"),
    [
        ([None, None], ["a", "b"]),
        ([True, False, False], ["a", "a", "b"]),  # one problem alone has a wanted step
        ([True, True, False], ["a", "b", "b"]),  # one problem alone has another
    ],
)
def test_without_two_problems_for_either_kind_there_is_none(
    targets: list[bool | None], problems: list[str]
) -> None:
    states = {0: torch.randn(len(targets), 4)}

    assert probes_of(states, targets, problems) == {}
    assert centroids_of(states, targets, problems) == {}


# --- centroids --------------------------------------------------------------------------------------------------------


def clusters(seed: int) -> tuple[torch.Tensor, list[bool | None], list[str]]:
    """Wanted steps in three directions, all states with one large component in common."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(PROBLEMS * EACH, HIDDEN, generator=generator)
    states[:, 0] += 20
    wanted: list[bool | None] = [step % 15 == 0 for step in range(len(states))]
    for step in range(0, len(states), 15):
        states[step, 1 + step // 15 % 3] += 15
    return states, wanted, [f"p{s // EACH}" for s in range(len(states))]


def test_centroids_find_wanted_steps_of_problems_never_seen() -> None:
    fitted = centroids_of({2: clusters(0)[0]}, *clusters(0)[1:])[2]
    states, wanted, _ = clusters(1)

    cosines = largest_cosine(states.double().numpy(), fitted.centroids.double().numpy())

    truth = np.array([bool(w) for w in wanted])
    assert len(fitted.centroids) >= 2
    assert (cosines[truth] >= fitted.min_cosine).mean() > 0.95
    assert (cosines[~truth] >= fitted.min_cosine).mean() < 0.01


def test_centroids_are_as_long_as_states_are() -> None:
    states, wanted, problems = clusters(0)
    fitted = centroids_of({0: states}, wanted, problems)[0]

    lengths = fitted.centroids.norm(dim=-1)
    assert lengths.min() > 15
    assert lengths.max() < 35


def test_the_same_states_give_the_same_bits() -> None:
    states, wanted, problems = made_up(0)

    first, second = (probes_of({0: states}, wanted, problems)[0] for _ in range(2))
    assert torch.equal(first.probe.weight, second.probe.weight)
    one, two = (centroids_of({0: states}, wanted, problems)[0] for _ in range(2))
    assert torch.equal(one.centroids, two.centroids)


# --- folds and thresholds ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), min_size=4, max_size=60))
def test_folds_hold_out_every_step_once_and_problems_whole(steps: list[tuple[bool, str]]) -> None:
    known = known_steps([wanted for wanted, _ in steps], [problem for _, problem in steps])
    if known is None:
        return

    folds = problem_folds(known)

    assert np.array_equal(np.sum(folds, axis=0), np.ones(len(steps)))
    for problem in set(known.problem_ids):
        own = np.array([p == problem for p in known.problem_ids])
        assert sum(bool(fold[own].any()) for fold in folds) == 1
    for fold in folds:
        assert known.wanted[~fold].any()
        assert not known.wanted[~fold].all()


def test_two_problems_with_other_steps_are_enough_whatever_they_are_called() -> None:
    """Of four problems with wanted steps one has another as well; the second problem with another has nothing else."""
    wanted = [True, False, True, True, True, False]
    for names in itertools.permutations("abcde"):
        known = known_steps(wanted, (names[0], *names))
        assert known is not None
        for fold in problem_folds(known):
            assert set(known.wanted[~fold].tolist()) == {True, False}

    states = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert probes_of({0: states}, wanted, "aabcde")
    assert centroids_of({0: states}, wanted, "aabcde")


SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=60).map(np.array)


@given(SCORES, SCORES, st.floats(0, 0.5))
def test_a_threshold_keeps_the_rate(
    others: NDArray[np.float64], wanted: NDArray[np.float64], rate: float
) -> None:
    scores = np.concatenate([others, wanted])
    is_wanted = np.arange(len(scores)) >= len(others)

    assert (others >= threshold_for(scores, is_wanted, rate)).mean() <= rate


def test_a_threshold_stands_half_way_where_there_is_room() -> None:
    scores = np.array([0.0, 1.0, 9.0, 9.0])

    assert threshold_for(scores, np.array([False, False, True, True]), 0.0) == pytest.approx(5.0)
