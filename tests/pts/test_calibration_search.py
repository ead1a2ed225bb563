"""How calibration searches: draws, estimates, schedules and successive halving, on planted outcomes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.calibration.draws import DrawOrder, draws_of, halves
from steering_pts.calibration.effects import effect_of, harmed
from steering_pts.calibration.halving import Measure, Round, cost, halve, schedule
from steering_pts.calibration.log import Draw, Outcome
from steering_pts.calibration.settings import Setting, TriggerChoice
from steering_pts.data import Problem
from steering_pts.seeds import derive_seed

KL_BUDGET = 0.02


def problems(count: int, forms: Sequence[str] = ("plain",)) -> list[Problem]:
    return [Problem(f"p{i:03}", f"Q{i}", "1", {"form": forms[i % len(forms)]}) for i in range(count)]


def setting(number: int, relative: float = 1.0) -> Setting:
    return Setting("method", f"vector-{number}", 0, 1.0, 1.0, relative, TriggerChoice("context"))


# --- draws ------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(0, 5))
def test_the_halves_share_nothing_and_lose_nothing(count: int, seed: int) -> None:
    choosing, confirming = halves(problems(count), "", seed)

    assert len(choosing) - len(confirming) in (0, 1)
    assert sorted(p.id for p in (*choosing, *confirming)) == [p.id for p in problems(count)]


@given(st.integers(4, 60), st.integers(1, 4))
def test_every_value_of_the_field_is_halved(count: int, values: int) -> None:
    some = problems(count, [f"form {value}" for value in range(values)])

    sides = halves(some, "form", 3)

    for value in {p.fields["form"] for p in some}:
        counts = [sum(p.fields["form"] == value for p in side) for side in sides]
        assert abs(counts[0] - counts[1]) <= 1


def test_all_problems_come_before_any_comes_again() -> None:
    draws = draws_of(problems(5), 3, seed=0)

    assert [draw.sample for draw in draws] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({draw.problem_id for draw in draws[:5]}) == 5
    assert draws_of(problems(5)[::-1], 3, seed=0) == draws


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_half_of_the_first_draws_act_as_long_as_there_are_any(acts: list[bool]) -> None:
    draws = [Draw(f"p{i}", 0) for i in range(len(acts))]

    order = DrawOrder.of(draws, dict(zip(draws, acts, strict=True)))

    assert sorted(order.draws) == sorted(draws)
    assert order.acting == tuple(acts[draws.index(draw)] for draw in order.draws)
    for count in range(1, len(acts) + 1):
        assert sum(order.acting[:count]) >= min(math.ceil(count / 2), sum(acts))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_on_all_draws_the_lift_is_the_plain_difference(rows: list[tuple[bool, bool, bool]]) -> None:
    draws = [Draw(f"p{i}", 0) for i in range(len(rows))]
    order = DrawOrder.of(draws, {draw: row[0] for draw, row in zip(draws, rows, strict=True)})
    by_draw = dict(zip(draws, rows, strict=True))
    before = [Outcome(by_draw[draw][1]) for draw in order.draws]
    after = [Outcome(by_draw[draw][2], kl=0.5, steps=4) for draw in order.draws]

    found = order.estimate(after, before)

    difference = sum(row[2] for row in rows) - sum(row[1] for row in rows)
    assert found.lift == pytest.approx(difference / len(rows), abs=1e-12)
    assert found.kl == pytest.approx(0.5 / 4)
    assert found.kl_error == pytest.approx(0, abs=1e-9)


def test_what_acts_is_weighed_by_how_often_it_does() -> None:
    draws = [Draw(f"p{i}", 0) for i in range(10)]
    order = DrawOrder.of(draws, {draw: i < 2 for i, draw in enumerate(draws)})  # one in five acts
    after = [Outcome(acts) for acts in order.acting[:4]]  # two of which act, and are mended

    found = order.estimate(after, [Outcome(False)] * 4)

    assert found.lift == pytest.approx(0.2)


def test_broken_logits_diverge_without_bound() -> None:
    order = DrawOrder((Draw("a", 0), Draw("b", 0)), (True, True))

    found = order.estimate([Outcome(False, math.inf, 1), Outcome(True, 0.0, 5)], [Outcome(False)] * 2)

    assert found.kl == math.inf


def test_where_no_step_counts_nothing_diverges() -> None:
    order = DrawOrder((Draw("a", 0),), (True,))

    assert order.estimate([Outcome(True, 0.0, 0, 3)], [Outcome(True)]).kl == 0.0


# --- schedules --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 600), st.integers(1, 500), st.integers(0, 60_000))
def test_a_schedule_halves_settings_doubles_draws_and_keeps_its_budget(
    count: int, most: int, budget: int
) -> None:
    rounds = schedule(count, most, budget)

    assert rounds[0].settings == count
    for before, after in itertools.pairwise(rounds):
        assert after.settings == math.ceil(before.settings / 2)
        assert before.draws < after.draws <= min(2 * before.draws, most)
    least = min(4, most)
    assert rounds[0].draws >= least
    # The share is kept wherever that many draws for each setting allow it.
    assert cost(rounds) <= budget or rounds == [Round(count, least)]
    if rounds[0].draws > least:
        assert rounds[-1].settings <= 2 or rounds[-1].draws == most or count == 1


def test_what_was_measured_is_not_measured_again() -> None:
    assert cost([Round(8, 10), Round(4, 20), Round(2, 40)]) == 80 + 40 + 40


# --- halving ----------------------------------------------------------------------------------------------------------

DRAWS = tuple(Draw(f"p{i:03}", 0) for i in range(400))
ORDER = DrawOrder(DRAWS, (True,) * len(DRAWS))


def planted(rates: Sequence[float], kls: Sequence[float], seed: int, asked: list[int]) -> Measure:
    """Outcomes with common random numbers: a setting solves a draw when the draw's number is below its rate."""

    def measure(
        settings: Sequence[Setting | None], draws: Sequence[Draw], _phase: str
    ) -> list[list[Outcome]]:
        asked.append(len(draws) * (len(settings) - 1))
        found = []
        for one in settings:
            number = None if one is None else int(one.vector_id.removeprefix("vector-"))
            rate = 0.5 if number is None else rates[number]
            kl = 0.0 if number is None else kls[number]
            # Half of the numbers are the draw's, half the setting's own: steering changes the completion.
            found.append(
                [Outcome(_uniform(seed, draw, number) < rate, kl * 20, 20, 1 if kl else 0) for draw in draws]
            )
        return found

    return measure


def _uniform(seed: int, draw: Draw, number: int | None) -> float:
    shared = derive_seed(seed, draw.problem_id) / 2**63
    own = derive_seed(seed, draw.problem_id, number or 0) / 2**63
    return shared if derive_seed(seed, draw.problem_id, "which") % 2 else own


@pytest.mark.parametrize("seed", range(8))
def test_the_winner_is_close_to_the_best_for_a_third_of_the_grid(seed: int) -> None:
    rates = [0.3 + 0.5 * ((7 * i) % 96) / 96 for i in range(96)]
    asked: list[int] = []
    rounds = schedule(96, 400, budget=int(0.3 * 96 * 200))

    found = halve(
        [setting(i) for i in range(96)], ORDER, rounds, KL_BUDGET, planted(rates, [0.0] * 96, seed, asked)
    )

    assert rates[found.finalists[0]] >= max(rates) - 0.05
    assert found.measured == sum(asked) <= 0.3 * 96 * 200
    assert [standing.setting for standing in found.standings] == [setting(i) for i in range(96)]
    assert sum(standing.rounds == len(found.rounds) for standing in found.standings) == rounds[-1].settings


def test_what_diverges_too_far_never_wins() -> None:
    rates, kls = [0.9, 0.8, 0.6, 0.5], [1.0, 0.03, 0.01, 0.0]

    found = halve(
        [setting(i) for i in range(4)], ORDER, schedule(4, 400, 1200), KL_BUDGET, planted(rates, kls, 1, [])
    )

    assert found.finalists[0] == 2
    assert found.standings[0].rounds == 1


def test_where_all_diverge_too_far_none_wins() -> None:
    found = halve(
        [setting(i) for i in range(3)],
        ORDER,
        schedule(3, 400, 900),
        KL_BUDGET,
        planted([0.9] * 3, [1.0] * 3, 1, []),
    )

    assert found.finalists == ()
    assert len(found.rounds) == 1
    assert all(standing.rounds == 1 for standing in found.standings)


def test_of_equals_the_one_that_diverges_less_wins_then_the_weaker_one() -> None:
    rates = [1.0] * 4
    relative = [1.0, 2.0, 0.5, 0.5]

    found = halve(
        [setting(i, relative[i]) for i in range(4)],
        ORDER,
        schedule(4, 400, 1200),
        KL_BUDGET,
        planted(rates, [0.001, 0.0005, 0.0005, 0.01], 1, []),
    )

    assert found.finalists[0] == 2


def test_a_single_setting_is_measured_and_wins() -> None:
    found = halve([setting(0)], ORDER, schedule(1, 400, 100), KL_BUDGET, planted([0.4], [0.0], 1, []))

    assert found.finalists == (0,)
    assert found.measured == 100


# --- effects ----------------------------------------------------------------------------------------------------------


def test_an_effect_is_told_in_all_and_by_value() -> None:
    some = problems(20, ["good", "bad"])
    draws = draws_of(some, 2, seed=0)
    by_id = {p.id: p for p in some}
    after = [Outcome(by_id[d.problem_id].fields["form"] == "good", 0.1, 10, 2) for d in draws]

    found = effect_of(draws, [Outcome(False)] * len(draws), after, by_id, "form", "test", 0)

    assert (found.lift.split, found.lift.problems, found.samples) == ("test", 20, 2)
    assert (found.lift.unsteered, found.lift.steered, found.lift.lift) == (0.0, 0.5, 0.5)
    assert found.lift.low95 < 0.5 < found.lift.high95
    assert {value: lift.lift for value, lift in found.by.items()} == {"bad": 0.0, "good": 1.0}
    assert found.kl == pytest.approx(0.01)
    assert found.steered_steps == 2


def test_a_value_that_is_harmed_for_certain_is_named() -> None:
    some = problems(40, ["mended", "same", "harmed"])
    draws = draws_of(some, 1, seed=0)
    by_id = {p.id: p for p in some}
    solved = {"mended": (False, True), "same": (True, True), "harmed": (True, False)}
    outcomes = [solved[by_id[d.problem_id].fields["form"]] for d in draws]
    before, after = ([Outcome(row[side]) for row in outcomes] for side in (0, 1))

    assert harmed(draws, before, after, by_id, "form", 0) == ["harmed"]
    assert harmed(draws, after, before, by_id, "form", 0) == ["mended"]
    assert harmed(draws, before, after, by_id, "", 0) == []
