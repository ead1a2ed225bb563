"""The model of a value curve, against references that add up every path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from steering_pts.search.chain import Posterior, StepPrior, ValueChain, _log_likelihood
from steering_pts.search.trace import Step

PRIOR = StepPrior(rho=0.1, sd=0.04)
TAU = 0.2
FIELDS = ("positive", "negative", "effect", "effect_sd", "value", "alternative")
Counts = tuple[int, int, int]  # successes, failures, censored
counts = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3))
likelihoods = st.floats(0.05, 0.8)


def candidates(probabilities: Sequence[float]) -> list[Step]:
    return [Step(k, k + 1, probability, is_candidate=True) for k, probability in enumerate(probabilities)]


def chain(steps: Sequence[Step], draws: Sequence[Counts], *, succeeded: bool = True) -> ValueChain:
    made = ValueChain(steps, succeeded=succeeded, tau=TAU, prior=PRIOR)
    for step, counts in zip(steps, draws, strict=True):
        for kind, count in enumerate(counts):
            for _ in range(count):
                made.add(step.start, kind)
    return made


def likelihood(draws: Counts, rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of draws at a rate: the even mixture of all verdicts that the censored ones may hide."""
    successes, failures, censored = draws
    return np.asarray(
        np.mean(
            [
                stats.beta(successes + hidden + 1, failures + censored - hidden + 1).pdf(rate)
                for hidden in range(censored + 1)
            ],
            axis=0,
        )
    )


def prior_mass(effect: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Of an effect on a grid: most are small, some of any size."""
    small = stats.norm(0, PRIOR.sd).pdf(effect) / (points - 1)
    return np.asarray((1 - PRIOR.rho) * small + PRIOR.rho / points)


def every_path(
    probabilities: Sequence[float], draws: Sequence[Counts], *, succeeded: bool, points: int
) -> list[dict[str, float]]:
    """The posterior of up to three candidates: prior times likelihood of every path of V, added up.

    Paths whose A lies outside [0, 1] are impossible; A of half a grid's spacing of V beyond counts as 0 or 1.
    """
    count = len(probabilities)
    grid = np.linspace(0, 1, points)
    values: list[NDArray[np.float64]] = list(np.meshgrid(*[grid] * count, indexing="ij"))
    values.append(np.full([points] * count, float(succeeded)))
    weight = np.ones([points] * count)
    for k, (p, own) in enumerate(zip(probabilities, draws, strict=True)):
        before, after = values[k], values[k + 1]
        rate = (before - p * after) / (1 - p)
        slack = 0.5 / (points - 1) / (1 - p) + 1e-9  # what lies on the bound is possible
        prior = prior_mass(after - before, points)
        weight = weight * prior * likelihood(own, np.clip(rate, 1e-3, 1 - 1e-3))
        weight = np.where((rate < -slack) | (rate > 1 + slack), 0.0, weight)
    weight /= weight.sum()
    found = []
    for k, p in enumerate(probabilities):
        before, after = np.broadcast_arrays(values[k], values[k + 1])
        effect = after - before
        mean = float((weight * effect).sum())
        found.append(
            {
                "positive": float(weight[effect >= TAU - 1e-9].sum()),
                "negative": float(weight[effect <= -TAU + 1e-9].sum()),
                "effect": mean,
                "effect_sd": float((weight * (effect - mean) ** 2).sum()) ** 0.5,
                "value": float((weight * after).sum()),
                "alternative": float((weight * (before - p * after) / (1 - p)).sum()),
            }
        )
    return found


def as_dicts(posterior: Posterior) -> list[dict[str, float]]:
    return [
        {name: float(getattr(posterior, name)[k]) for name in FIELDS} for k in range(len(posterior.effect))
    ]


@settings(max_examples=25)
@given(st.lists(st.tuples(likelihoods, counts), min_size=1, max_size=3), st.booleans())
def test_the_posterior_is_the_sum_over_all_paths(tokens: list[tuple[float, Counts]], succeeded: bool) -> None:
    probabilities, draws = [p for p, _ in tokens], [own for _, own in tokens]

    posterior = chain(candidates(probabilities), draws, succeeded=succeeded).posterior()

    for ours, slow in zip(
        as_dicts(posterior),
        every_path(probabilities, draws, succeeded=succeeded, points=61),
        strict=True,
    ):
        slow["alternative"] = min(max(slow["alternative"], 1e-3), 1 - 1e-3)
        # Not closer: what can't be is left a chance of 1e-12, and the smallest deviations are roots of that.
        assert ours == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize(
    "draws",
    [
        [(0, 0, 0), (0, 0, 0)],
        [(2, 10, 0), (8, 4, 0)],
        [(12, 1, 0), (1, 12, 0)],
        [(6, 6, 3), (3, 20, 0)],
    ],
)
def test_a_grid_ten_times_finer_says_the_same(draws: list[Counts]) -> None:
    probabilities = (0.3, 0.6)

    posterior = chain(candidates(probabilities), draws).posterior()

    for ours, fine in zip(
        as_dicts(posterior), every_path(probabilities, draws, succeeded=True, points=601), strict=True
    ):
        assert ours == pytest.approx(fine, abs=0.05)


def test_without_draws_the_last_candidate_has_the_prior() -> None:
    # V after it is 1, so its effect 1 - V_before is in [0, 1 - p]: half of a normal, and a uniform.
    posterior = chain(candidates([0.5]), [(0, 0, 0)]).posterior()

    effects = np.arange(31) / 60
    mass = prior_mass(effects, 61)
    mass /= mass.sum()
    assert posterior.negative[0] == pytest.approx(0.0, abs=1e-9)
    assert posterior.positive[0] == pytest.approx(mass[effects >= TAU - 1e-9].sum(), abs=1e-9)
    assert posterior.effect[0] == pytest.approx((mass * effects).sum(), abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(likelihoods, counts), min_size=1, max_size=6), st.booleans())
def test_successes_and_failures_are_mirror_images(
    tokens: list[tuple[float, Counts]], succeeded: bool
) -> None:
    steps = candidates([p for p, _ in tokens])
    draws = [own for _, own in tokens]
    swapped = [(failures, successes, censored) for successes, failures, censored in draws]

    one = chain(steps, draws, succeeded=succeeded).posterior()
    other = chain(steps, swapped, succeeded=not succeeded).posterior()

    assert other.positive == pytest.approx(one.negative, abs=1e-9)
    assert other.effect == pytest.approx(-one.effect, abs=1e-9)
    assert other.value == pytest.approx(1 - one.value, abs=1e-9)
    assert other.alternative == pytest.approx(1 - one.alternative, abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(likelihoods, counts), min_size=1, max_size=6), st.booleans(), st.data())
def test_a_success_never_lowers_the_rate_of_where_it_left(
    tokens: list[tuple[float, Counts]], succeeded: bool, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, len(tokens) - 1))
    one = chain(candidates([p for p, _ in tokens]), [own for _, own in tokens], succeeded=succeeded)
    before = one.posterior()
    one.add(step, 0)

    assert one.posterior().alternative[step] >= before.alternative[step] - 1e-9


def test_successes_later_raise_the_value_before() -> None:
    steps = candidates([0.5, 0.5])

    values = [chain(steps, [(0, 0, 0), (n, 20 - n, 0)]).posterior().value[0] for n in range(0, 21, 4)]

    assert values == sorted(values)
    assert values[-1] - values[0] > 0.3


@given(counts)
def test_a_censored_draw_counts_as_the_even_mixture_of_what_it_may_hide(draws: Counts) -> None:
    rate = np.linspace(0.01, 0.99, 50)

    ours = np.exp(_log_likelihood(np.array([draws]), rate[None, None, :])[0, 0])
    mixture = likelihood(draws, rate)

    assert ours / ours.sum() == pytest.approx(mixture / mixture.sum(), rel=1e-9)


@pytest.mark.parametrize("censored", [1, 5, 40])
def test_censored_draws_never_decide(censored: int) -> None:
    steps = candidates([0.3])
    untold = chain(steps, [(0, 0, 0)]).posterior()
    told = chain(steps, [(0, 0, censored)]).posterior()

    # A uniform rate is as likely to have drawn any number of successes, so nothing at all is learned.
    assert told.effect == pytest.approx(untold.effect, abs=1e-9)
    assert told.positive == pytest.approx(untold.positive, abs=1e-9)


def test_censored_draws_widen_what_the_others_say() -> None:
    steps = candidates([0.3])

    spreads = [chain(steps, [(10, 10, censored)]).posterior().effect_sd[0] for censored in (0, 5, 10, 20)]

    assert spreads == sorted(spreads)


def test_a_merged_step_takes_part_and_is_no_candidate() -> None:
    steps = [
        Step(0, 1, 0.4, is_candidate=True),
        Step(1, 9, 0.9, is_candidate=False),
        Step(9, 10, 0.5, is_candidate=True),
    ]

    posterior = chain(steps, [(0, 0, 0), (3, 0, 0), (0, 20, 0)]).posterior()

    assert len(posterior.effect) == 2
    assert posterior.positive[1] > 0.9  # without this token it always fails, with it it succeeded


def test_draws_are_of_the_step_that_holds_their_position() -> None:
    one = ValueChain(
        [Step(0, 1, 0.4, is_candidate=True), Step(1, 9, 0.9, is_candidate=False)],
        succeeded=True,
        tau=TAU,
        prior=PRIOR,
    )
    for position, kind in ((0, 0), (1, 1), (8, 2), (5, 1)):
        one.add(position, kind)

    assert one.draws.tolist() == [[1, 0, 0], [0, 2, 1]]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12), st.sets(st.integers(0, 12)))
def test_asking_or_releasing_in_between_changes_nothing(
    draws: list[tuple[int, int]], asked_after: set[int]
) -> None:
    steps = candidates([0.3, 0.7, 0.5, 0.2])
    one, other = (ValueChain(steps, succeeded=True, tau=TAU, prior=StepPrior()) for _ in range(2))
    for index, (position, kind) in enumerate(draws):
        one.add(position, kind)
        other.add(position, kind)
        if index in asked_after:
            one.posterior()
            if index % 2:
                one.release()
    one.set_prior(StepPrior(0.2, 0.05))
    other.set_prior(StepPrior(0.2, 0.05))

    for ours, theirs in zip(as_dicts(one.posterior()), as_dicts(other.posterior()), strict=True):
        assert ours == theirs


def test_large_effects_are_evidence_of_a_prior_with_more_of_them() -> None:
    steps = candidates([0.3])
    large, _ = chain(steps, [(0, 30, 0)]).prior_evidence(np.array([True]))
    small, _ = chain(steps, [(30, 0, 0)]).prior_evidence(np.array([True]))
    none, _ = chain(steps, [(0, 30, 0)]).prior_evidence(np.array([False]))

    assert large > 0.99
    assert small < 0.1
    assert none == 0


@settings(max_examples=25)
@given(st.lists(st.tuples(likelihoods, counts), min_size=1, max_size=5), st.booleans())
def test_the_curve_goes_through_the_posterior_of_every_candidate(
    tokens: list[tuple[float, Counts]], succeeded: bool
) -> None:
    made = chain(candidates([p for p, _ in tokens]), [own for _, own in tokens], succeeded=succeeded)

    curve, posterior = made.curve(), made.posterior()

    assert curve.positions == tuple(range(len(tokens) + 1))
    np.testing.assert_allclose(curve.mean[1:], posterior.value, atol=1e-9)
    np.testing.assert_allclose(curve.mean[:-1], posterior.value - posterior.effect, atol=1e-9)
    assert (curve.low[-1], curve.high[-1]) == (float(succeeded), float(succeeded))
    # By Cantelli's inequality at least 95 % lie within so many standard deviations of the mean on either side.
    reach = np.sqrt(39 * posterior.value_variance) + 1 / 60
    assert (np.abs(np.stack([curve.low[1:], curve.high[1:]]) - posterior.value) <= reach).all()
    wider = made.curve(level=0.99)
    assert (wider.low <= curve.low).all()
    assert (wider.high >= curve.high).all()


def test_an_interval_is_that_of_the_binomial_where_one_token_decides() -> None:
    # V before the only token is (1 - p) A nearly, whose posterior under 20 draws is Beta's but for the prior.
    curve = chain(candidates([0.01]), [(10, 10, 0)], succeeded=False).curve()

    low, high = 0.99 * stats.beta(11, 11).ppf([0.025, 0.975])
    assert (curve.low[0], curve.high[0]) == pytest.approx((low, high), abs=0.08)
