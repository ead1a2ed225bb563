from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import Arm, ArmKind
from steering_pts.evaluation.figures import check_fields, figures_of
from steering_pts.evaluation.measuring import MeasuredArm, Measurement
from steering_pts.evaluation.samples import BROKEN, Sample
from steering_pts.evaluation.statistics import (
    clustered_mean,
    exact_mean,
    holm,
    paired_differences,
    random_direction_p,
    sign_flip_p,
)
from steering_pts.oracles.base import Verdict
from steering_spec import FinishReason, SteeringAct

outcomes = st.lists(st.booleans(), min_size=1, max_size=4)


def enumerated_p(differences: list[list[float]]) -> float:
    """The share of all sign patterns whose mean is at least as far from 0 as what was observed."""
    means = [float(np.mean(own)) for own in differences]
    observed = abs(sum(means))
    patterns = list(itertools.product((1, -1), repeat=len(means)))
    reached = sum(
        abs(sum(sign * mean for sign, mean in zip(signs, means, strict=True))) >= observed - 1e-9
        for signs in patterns
    )
    return reached / len(patterns)


@given(st.lists(outcomes, min_size=2, max_size=30))
def test_the_mean_is_that_of_problems_and_lies_in_its_interval(values: list[list[bool]]) -> None:
    estimate = clustered_mean(values, seed=1)

    assert estimate.value == pytest.approx(np.mean([np.mean(own) for own in values]))
    assert 0 <= estimate.low <= estimate.high <= 1
    assert estimate == clustered_mean(values, seed=1)


def test_the_interval_is_as_wide_as_the_number_of_problems_says_not_of_completions() -> None:
    few = [[True] * 4, [False] * 4] * 10
    many = [[True], [False]] * 40

    wide, narrow = clustered_mean(few, 0), clustered_mean(many, 0)

    assert wide.high - wide.low == pytest.approx(2 * (narrow.high - narrow.low), rel=0.15)


def test_completions_without_a_partner_are_left_out_of_a_pair() -> None:
    assert paired_differences([[True, False], [False]], [[False], [True, True]]) == [[-1.0], [1.0]]


@given(st.lists(outcomes, min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_the_sign_flip_test_is_exact_for_few_problems(values: list[list[bool]], random: object) -> None:
    flipped = [[not one if random.random() < 0.5 else one for one in own] for own in values]  # type: ignore[attr-defined]
    differences = paired_differences(values, flipped)

    assert sign_flip_p(differences, seed=0) == pytest.approx(enumerated_p(differences))


def test_a_lift_of_nothing_is_no_evidence_however_it_comes_about() -> None:
    """Thirds and halves that add up to 0 leave a last digit in floating point, which no flip must be nearer to."""
    changes = [[-1.0, 0.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 0.0, -1.0], [1.0]]

    assert exact_mean(changes) == 0
    assert sign_flip_p(changes, seed=0) == 1.0


def test_the_sign_flip_test_counts_problems_not_completions() -> None:
    assert sign_flip_p([[1.0] * 100] * 4, seed=0) == pytest.approx(2 / 16)
    assert sign_flip_p([[1.0]] * 200, seed=0) == pytest.approx(2e-4, rel=0.01)
    assert sign_flip_p([[0.0], [0.0]], seed=0) == 1.0


def test_sign_flip_p_values_are_uniform_without_an_effect() -> None:
    generator = np.random.default_rng(3)
    p_values = [
        sign_flip_p([[float(change)] for change in generator.normal(size=10)], seed) for seed in range(200)
    ]

    assert np.mean(np.array(p_values) <= 0.05) <= 0.1  # 0.05, and three standard errors


@pytest.mark.parametrize(
    ("observed", "random", "p"),
    [(0.3, [0.0] * 20, 1 / 21), (0.3, [0.3, 0.1, 0.4], 3 / 4), (-1.0, [0.0], 1.0)],
)
def test_the_p_value_among_random_directions(observed: float, random: list[float], p: float) -> None:
    assert random_direction_p(observed, random) == p


def test_holms_correction_goes_step_by_step() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not come below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def sample(ids: tuple[int, ...] = (1, 2), *steps: int, cut: bool = False) -> Sample:
    finish = FinishReason.LENGTH if cut else FinishReason.EOS
    return Sample(ids, "", finish, tuple(SteeringAct(0, (1,), step=step) for step in steps))


def measured(name: str, kind: ArmKind, verdicts: str, *samples: Sample) -> MeasuredArm:
    """An arm with a completion for each letter of problems parted by blanks: Correct, Incorrect, X censored."""
    by_letter = {"C": Verdict.CORRECT, "I": Verdict.INCORRECT, "X": Verdict.CENSORED}
    read = tuple(tuple(by_letter[letter] for letter in own) for own in verdicts.split())
    left = iter(samples)
    made = tuple(tuple(next(left, sample()) for _ in own) for own in read)
    return MeasuredArm(Arm(name, None, kind, len(read[0])), made, read)


PROBLEMS = tuple(Problem(str(i), f"q{i}", "1", {"form": "ab"[i % 2]}) for i in range(4))


def measurement(*more: MeasuredArm) -> Measurement:
    return Measurement(
        PROBLEMS,
        (
            measured("unsteered", ArmKind.UNSTEERED, "CI II CC II"),
            measured("steered", ArmKind.STEERED, "CC CI CC IX", sample((1, 2), 0), sample((7,) * 9, 1, 2)),
            *more,
        ),
        0,
    )


def test_an_arm_is_told_by_its_completions() -> None:
    broken = measured("flipped", ArmKind.FLIPPED, "I I X C", BROKEN, sample((1,) * 6, 1), sample(cut=True))

    figures = figures_of(measurement(broken), (), seed=0)

    steered, flipped = figures.arm("steered"), figures.arm("flipped")
    assert steered is not None
    assert flipped is not None
    assert (steered.n, steered.success.value, steered.censored) == (8, 5 / 8, 1)
    assert steered.steered_steps_mean == 3 / 8
    # The second completion has six 4-grams, all alike.
    assert steered.repetition == pytest.approx((5 / 6) / 8)
    assert (flipped.n, flipped.broken, flipped.truncated, flipped.censored) == (4, 1, 1, 1)
    assert flipped.success.value == 1 / 4
    assert flipped.tokens_mean == (0 + 6 + 2 + 2) / 4


def test_lifts_are_of_pairs_and_random_directions_stand_apart() -> None:
    randoms = [
        measured("random 1", ArmKind.RANDOM, "C I C I"),
        measured("random 2", ArmKind.RANDOM, "C C C I"),
        measured("random 3", ArmKind.RANDOM, "I I C I"),
    ]

    figures = figures_of(measurement(*randoms), (), seed=0)

    lift = figures.lift("steered")
    assert lift is not None
    assert [one.arm for one in figures.lifts] == ["steered"]
    assert lift.lift.value == (0.5 + 0.5 + 0 + 0) / 4
    assert lift.holm_p is None
    assert figures.random is not None
    assert figures.random.lifts == (0.0, 0.25, -0.25)
    assert figures.random.lift.value == pytest.approx(0.0)
    # On the first completion of each problem the vectors' lift is 0.25, which one random direction reaches.
    assert figures.random.p == 2 / 4


def test_a_random_direction_with_the_same_lift_counts_however_it_is_spread() -> None:
    """7 of 9 completions, either way; thirds added up in another order differ in their last digit."""
    plain = measured("unsteered", ArmKind.UNSTEERED, "III III III")
    for one, other in itertools.permutations(("CCI CCC CCI", "CCC CCC CII")):
        arms = (plain, measured("steered", ArmKind.STEERED, one), measured("random 1", ArmKind.RANDOM, other))

        random = figures_of(Measurement(PROBLEMS[:3], arms, 0), (), seed=0).random

        assert random is not None
        assert random.lifts == (7 / 9,)
        assert random.p == 1.0


def test_vectors_that_are_measured_alone_share_one_correction() -> None:
    alone = [
        measured("steered: one", ArmKind.STEERED, "CC CC CC CC"),
        measured("steered: two", ArmKind.STEERED, "CI II CC II"),
    ]

    lifts = {one.arm: one for one in figures_of(measurement(*alone), (), seed=0).lifts}

    assert lifts["steered"].holm_p is None
    assert lifts["steered: one"].holm_p == pytest.approx(2 * lifts["steered: one"].p)
    assert lifts["steered: two"].holm_p == lifts["steered: two"].p == 1.0


def test_success_is_told_apart_by_a_field() -> None:
    groups = figures_of(measurement(), ("form",), seed=0).by_group["form"]

    assert {value: (one.n, one.unsteered, one.steered) for value, one in groups.items()} == {
        "a": (2, 3 / 4, 1.0),
        "b": (2, 0.0, 1 / 4),
    }


def test_differences_at_strength_0_are_counted() -> None:
    off = measured("strength_0", ArmKind.STRENGTH_0, "C I C I", sample((1, 3)))

    figures = figures_of(measurement(off), (), seed=0)

    assert figures.different_at_strength_0 == (1, 4)
    assert figures_of(measurement(), (), seed=0).different_at_strength_0 is None


def test_fields_that_tell_nothing_apart_are_refused_together() -> None:
    problems = [Problem(str(i), "q", "1", {"name": str(i)}) for i in range(51)]

    with pytest.raises(EvaluationError) as caught:
        check_fields(problems, ("form", "name"))

    assert str(caught.value) == (
        "no problem has the field 'form'; they have name; the field 'name' has 51 values, the first '0'; "
        "expected at most 50"
    )
