"""The dense reference of the bundled model, checked in part: nobody but its script makes it whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest

from steering_engine.alias import resolve_model
from steering_engine.model import SteeredModel
from steering_pts.demo.problems import FORMS
from steering_pts.oracles.registry import make_oracle
from steering_pts.rollouts import EngineRollouts
from steering_pts.scoring import score_completions
from steering_pts.search import candidates
from tests.bench.discovery.bundled_rollouts import BundledRollouts, Start
from tests.bench.discovery.reference_file import (
    Counts,
    ReferenceCompletion,
    bundled_digest,
    effect,
    load_reference,
)

REFERENCE = load_reference()
ROLLOUTS = 200


@pytest.fixture(scope="module")
def rollouts() -> Iterator[BundledRollouts]:
    model = SteeredModel.load(resolve_model("demo"), device="cpu")
    oracle = make_oracle("math")
    with EngineRollouts(model, REFERENCE.sampler) as source:
        yield BundledRollouts(model, source, oracle, REFERENCE.sampler.max_tokens)
    oracle.close()


def starts(completion: ReferenceCompletion, given: int, *, leaves: bool = False) -> list[Start]:
    return [Start(completion, given, leaves, seed) for seed in range(ROLLOUTS)]


def rate(counts: Counts) -> tuple[float, float]:
    """Rate of success, and the variance of its estimate; no rate is taken for quite sure."""
    judged = counts[0] + counts[1]
    shrunk = (counts[0] + 1) / (judged + 2)
    return counts[0] / judged, shrunk * (1 - shrunk) / judged


def assert_alike(one: Counts, other: Counts) -> None:
    (first, first_variance), (second, second_variance) = rate(one), rate(other)
    assert abs(first - second) <= 4 * math.sqrt(first_variance + second_variance)


def test_it_is_of_the_bundled_model() -> None:
    assert REFERENCE.model_digest == bundled_digest()


def test_it_holds_twenty_completions_of_different_problems_all_forms_and_both_verdicts() -> None:
    completions = REFERENCE.completions
    assert len({completion.problem_id for completion in completions}) == len(completions) == 20
    assert Counter(completion.succeeded for completion in completions) == {True: 10, False: 10}
    assert {completion.form for completion in completions} == set(FORMS)


def test_every_candidate_has_a_thousand_rollouts_on_both_sides() -> None:
    for completion in REFERENCE.completions:
        assert tuple(c.position for c in completion.candidates) == candidates(completion.probabilities, 0.2)
        for candidate in completion.candidates:
            assert candidate.probability == completion.probabilities[candidate.position]
            assert sum(candidate.alternative) == 1_000
            assert candidate.after is None or sum(candidate.after) == 1_000
            assert (candidate.after is None) == (candidate.position == len(completion.ids) - 1)


def test_effects_follow_from_the_counts() -> None:
    for completion in REFERENCE.completions:
        for candidate in completion.candidates:
            own = effect(candidate.probability, completion.succeeded, candidate.alternative, candidate.after)
            assert own == (candidate.delta, candidate.standard_error)


def test_it_has_pivots_of_every_planted_kind() -> None:
    kinds = {c.kind for own in REFERENCE.completions for c in own.candidates if abs(c.delta) >= REFERENCE.tau}
    assert kinds >= {"strategy", "correction", "operand", "slip"}


def test_the_model_still_gives_every_token_the_same_probability(rollouts: BundledRollouts) -> None:
    completions = REFERENCE.completions[:3]
    pairs = [(completion.prompt_ids, completion.ids) for completion in completions]
    scores = score_completions(rollouts.model.loaded, pairs, REFERENCE.sampler)
    for completion, score in zip(completions, scores, strict=True):
        assert score == pytest.approx(completion.probabilities, abs=1e-6)


@pytest.mark.parametrize("number", [0, 2])
def test_rollouts_on_both_sides_of_a_candidate_succeed_as_often_as_it_says(
    rollouts: BundledRollouts, number: int
) -> None:
    completion = REFERENCE.completions[number]
    candidate = completion.candidates[0]
    assert candidate.after is not None
    assert_alike(rollouts.counts(starts(completion, candidate.position, leaves=True)), candidate.alternative)
    assert_alike(rollouts.counts(starts(completion, candidate.position + 1)), candidate.after)


@pytest.mark.parametrize("number", [4, 7])
def test_the_value_before_a_candidate_is_what_the_identity_makes_of_both_sides(
    rollouts: BundledRollouts, number: int
) -> None:
    completion = REFERENCE.completions[number]
    for candidate in completion.candidates:
        pi = candidate.probability
        after, after_variance = (float(completion.succeeded), 0.0)
        if candidate.after is not None:
            after, after_variance = rate(candidate.after)
        other, other_variance = rate(candidate.alternative)
        before, variance = rate(rollouts.counts(starts(completion, candidate.position)))
        error = math.sqrt(variance + pi**2 * after_variance + (1 - pi) ** 2 * other_variance)
        assert abs(before - (pi * after + (1 - pi) * other)) <= 4 * error
