"""What fresh rollouts of a nominee say, and how many of them it gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steering_pts.ledger.records import NomineeRecord
from steering_pts.oracles.base import Verdict
from steering_pts.search import Trace
from steering_pts.search.chain import Posterior
from steering_pts.search.confirmation import Counts, confirmation, sizes
from steering_pts.settings import SearchSettings
from steering_pts.statistics import contrast_interval, contrast_p

SETTINGS = SearchSettings()
TRACE = Trace("c", (0.9, 0.5, 0.8, 0.75), succeeded=True)
FAILED = replace(TRACE, succeeded=False)
LATER = 1 - 0.8 * 0.75  # of leaving after the token at 1
sides = st.builds(Counts, st.integers(0, 12), st.integers(0, 12), st.integers(0, 4)).filter(lambda c: c.all)
signs = st.sampled_from([1, -1])


def nominee(sign: int = 1, *, position: int = 1, on_path: int = 24) -> NomineeRecord:
    return NomineeRecord("c", position, sign, 0.9, 0.3 * sign, (1, 2, 0), on_path, 24)


def posterior(effect: float, value: float, alternative: float, effect_sd: float = 0.05) -> Posterior:
    def one(number: float) -> NDArray[np.float64]:
        return np.array([number])

    return Posterior(
        positive=one(effect > 0),
        negative=one(effect < 0),
        effect=one(effect),
        effect_sd=one(effect_sd),
        value=one(value),
        value_variance=one(0.01),
        alternative=one(alternative),
        alternative_variance=one(0.01),
    )


# --- the test and the estimate ----------------------------------------------------------------------------------------


def test_a_positive_nominee_has_to_exceed_the_scaled_bound() -> None:
    found = confirmation(FAILED, nominee(), Counts(20, 4), Counts(2, 22), SETTINGS)

    assert (found.x1, found.n1, found.x2, found.n2) == (20, 24, 2, 24)
    assert found.leave == pytest.approx(LATER)
    assert found.p_value == pytest.approx(
        contrast_p((20, 24), (2, 24), (LATER, 1.0), SETTINGS.delta0 / 0.5), abs=1e-12
    )


def test_a_negative_nominee_is_tested_the_other_way_round() -> None:
    found = confirmation(FAILED, nominee(-1), Counts(2, 22), Counts(20, 4), SETTINGS)

    assert found.p_value == pytest.approx(
        contrast_p((20, 24), (2, 24), (1.0, LATER), SETTINGS.delta0 / 0.5), abs=1e-12
    )
    assert found.delta < 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_known_probability_of_following_the_completion_enters_exactly(sign: int) -> None:
    found = confirmation(TRACE, nominee(sign), Counts(15, 9), Counts(8, 16), SETTINGS)

    # V = f V_T + (1 - f) B with f = 0.8 * 0.75 and V_T = 1.
    value = 0.6 + 0.4 * 15 / 24
    assert found.delta == pytest.approx(0.5 * (value - 8 / 24), abs=1e-12)
    margin = SETTINGS.delta0 / 0.5
    expected = (
        contrast_p((15, 24), (8, 24), (0.4, 1.0), margin - 0.6)
        if sign > 0
        else contrast_p((8, 24), (15, 24), (1.0, 0.4), margin + 0.6)
    )
    assert found.p_value == pytest.approx(expected, abs=1e-9)


def test_without_censored_rollouts_the_interval_is_price_and_bonetts() -> None:
    found = confirmation(TRACE, nominee(), Counts(15, 9), Counts(8, 16), SETTINGS)

    expected = contrast_interval((15, 24), (8, 24), (LATER, 1.0), 1 - LATER, 0.5)
    assert (found.delta, found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_after_the_last_token_the_verdict_is_known_and_only_alternatives_are_drawn() -> None:
    found = confirmation(TRACE, nominee(position=3, on_path=0), Counts(), Counts(3, 21), SETTINGS)

    assert (found.n1, found.leave) == (0, 0.0)
    assert found.delta == pytest.approx(0.25 * (1 - 3 / 24))
    assert found.p_value == pytest.approx(
        contrast_p((0, 0), (3, 24), (0.0, 1.0), SETTINGS.delta0 / 0.25 - 1), abs=1e-12
    )


@pytest.mark.parametrize("succeeded", [True, False])
@pytest.mark.parametrize("position", [1, 3])
def test_a_guarantee_about_no_effect_at_all_can_be_asked_for(position: int, succeeded: bool) -> None:
    settings = SearchSettings(delta0=0.0)
    on_path = 0 if position == 3 else 24
    sign = 1 if succeeded else -1
    against = Counts(2, 22) if succeeded else Counts(22, 2)
    own = Counts() if position == 3 else Counts(against.failures, against.successes)

    found = confirmation(
        replace(TRACE, succeeded=succeeded),
        nominee(sign, position=position, on_path=on_path),
        own,
        against,
        settings,
    )

    assert found.p_value < 0.001
    assert found.delta * sign > 0


# --- censored rollouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_censored_rollouts_count_against_the_effect_and_not_at_all_in_the_estimate(sign: int) -> None:
    better, worse = Counts(18, 2, 4), Counts(2, 19, 3)
    on_path, alternative = (better, worse) if sign > 0 else (worse, better)

    found = confirmation(FAILED, nominee(sign), on_path, alternative, SETTINGS)

    weights = (LATER, 1.0) if sign > 0 else (1.0, LATER)
    assert found.p_value == pytest.approx(
        contrast_p((18, 24), (2 + 3, 24), weights, SETTINGS.delta0 / 0.5), abs=1e-12
    )
    on_rate, other_rate = (18 / 20, 2 / 21) if sign > 0 else (2 / 21, 18 / 20)
    assert found.delta == pytest.approx(0.5 * (LATER * on_rate - other_rate))
    assert (found.censored1, found.censored2) == (on_path.censored, alternative.censored)


@given(sides, sides, signs, st.booleans(), st.data())
def test_no_verdict_could_have_been_worse_for_the_effect_than_censored(
    on_path: Counts, alternative: Counts, sign: int, succeeded: bool, data: st.DataObject
) -> None:
    trace = replace(TRACE, succeeded=succeeded)
    censored = confirmation(trace, nominee(sign), on_path, alternative, SETTINGS)

    def revealed(side: Counts) -> Counts:
        hidden = data.draw(st.integers(0, side.censored))
        return Counts(side.successes + hidden, side.failures + side.censored - hidden)

    judged = confirmation(trace, nominee(sign), revealed(on_path), revealed(alternative), SETTINGS)

    assert judged.p_value <= censored.p_value + 1e-9
    if on_path.judged and alternative.judged:
        assert censored.low <= judged.low + 1e-9
        assert judged.high <= censored.high + 1e-9


@given(sides, sides, signs, st.booleans())
def test_the_interval_holds_the_estimate(
    on_path: Counts, alternative: Counts, sign: int, succeeded: bool
) -> None:
    found = confirmation(replace(TRACE, succeeded=succeeded), nominee(sign), on_path, alternative, SETTINGS)

    assert -0.5 <= found.low <= found.delta <= found.high <= 0.5


@pytest.mark.parametrize(
    ("on_path", "alternative"), [(Counts(0, 0, 24), Counts(2, 22)), (Counts(24, 0), Counts(0, 0, 24))]
)
def test_a_side_that_was_censored_throughout_leaves_every_effect_possible(
    on_path: Counts, alternative: Counts
) -> None:
    found = confirmation(FAILED, nominee(), on_path, alternative, SETTINGS)

    assert found.p_value > 0.9
    assert (found.delta, found.low, found.high) == pytest.approx((0.0, -0.5, 0.5), abs=1e-12)


def test_counts_tell_verdicts_apart() -> None:
    counts = Counts()
    for verdict in (Verdict.CORRECT, Verdict.CENSORED, Verdict.CORRECT, Verdict.INCORRECT):
        counts.add(verdict)

    assert counts == Counts(successes=2, failures=1, censored=1)
    assert (counts.judged, counts.all) == (3, 4)


# --- sizes ------------------------------------------------------------------------------------------------------------


@given(
    st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3), st.integers(0, 3), st.booleans()
)
def test_sizes_stay_in_their_limits(
    effect: float, value: float, alternative: float, effect_sd: float, position: int, succeeded: bool
) -> None:
    trace = Trace("c", (0.5, 0.5, 0.5, 0.5), succeeded)

    on_path, other = sizes(trace, position, posterior(effect, value, alternative, effect_sd), 0, SETTINGS)

    assert SETTINGS.confirm_least <= other <= SETTINGS.confirm_most
    if position == 3:
        assert on_path == 0  # its verdict is known
    else:
        assert SETTINGS.confirm_least <= on_path <= SETTINGS.confirm_most


def test_a_larger_effect_needs_fewer_rollouts() -> None:
    wide = SearchSettings(confirm_least=1, confirm_most=10_000)
    needed = [sum(sizes(FAILED, 1, posterior(e, 0.5, 0.5), 0, wide)) for e in (0.2, 0.3, 0.4, 0.5)]

    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 4 * needed[-1]


def test_rollouts_go_to_the_side_that_varies_more() -> None:
    wide = SearchSettings(confirm_least=1, confirm_most=10_000, delta0=0.19)
    on_path, alternative = sizes(FAILED, 1, posterior(0.3, LATER * 0.5, 0.97), 0, wide)

    # Neyman: in proportion to the standard deviations, 0.4 * sqrt(0.5 * 0.5) and sqrt(0.97 * 0.03).
    assert on_path / alternative == pytest.approx(LATER * 0.5 / (0.97 * 0.03) ** 0.5, rel=0.05)


def test_the_sizes_give_about_the_power_that_was_asked_for() -> None:
    wide = SearchSettings(confirm_least=1, confirm_most=10_000, power=0.9)
    trace = Trace("c", (0.5, 0.01), succeeded=False)
    value, alternative = 0.75, 0.25
    later = trace.leave(1)
    n1, n2 = sizes(trace, 0, posterior(0.25, later * value, alternative, 0.0), 0, wide)
    rng = np.random.default_rng(0)
    draws = zip(rng.binomial(n1, value, 2000), rng.binomial(n2, alternative, 2000), strict=True)

    confirmed = [
        confirmation(
            trace,
            NomineeRecord("c", 0, 1, 0.9, 0.25, (0, 0, 0), n1, n2),
            Counts(int(x1), n1 - int(x1)),
            Counts(int(x2), n2 - int(x2)),
            wide,
        ).p_value
        <= wide.fdr
        for x1, x2 in draws
    ]

    assert np.mean(confirmed) == pytest.approx(0.9, abs=0.04)
