"""Which rollouts are made next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.ledger.records import RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search import Outcome, Search, Trace
from steering_pts.search.chain import StepPrior
from steering_pts.search.exploration import Exploration, Explored
from steering_pts.settings import SearchSettings
from tests.support.simulation import Answer, Simulation, planted

SETTINGS = SearchSettings(budget=200)
CLEAR = planted(30, forks=[4], effects={20: 0.6})
UNCLEAR = planted(30, forks=[4], effects={20: 0.2})


def explore(traces: Sequence[Trace], settings: SearchSettings, answer: Answer) -> list[list[RolloutKey]]:
    """Every round of an exploration."""
    exploration = Exploration(list(traces), settings)
    rounds = []
    while asks := exploration.asks():
        rounds.append(asks)
        exploration.tell({key: answer(key) for key in asks})
    assert exploration.used == sum(map(len, rounds))
    return rounds


def simulated(**completions: Simulation) -> tuple[list[Trace], Answer]:
    """Several completions under their names."""
    traces = [one.trace(name) for name, one in completions.items()]
    return traces, lambda key: completions[key.completion_id].roll(key)


def unclear_or_wrong(key: RolloutKey) -> Outcome:
    return UNCLEAR.roll(key) if key.completion_id == "c" else Outcome(Verdict.INCORRECT, 0)


def always(verdict: Verdict) -> Answer:
    return lambda key: Outcome(verdict, key.position + (key.arm == "on_path"))


def test_a_round_begins_with_alternatives_of_every_candidate() -> None:
    traces, _ = simulated(a=planted(30, forks=[4, 9], effects={20: 0.4}))

    asks = Exploration(traces, SETTINGS).asks()

    assert {(key.position, key.arm) for key in asks} == {
        (4, "alternative"),
        (9, "alternative"),
        (20, "alternative"),
    }
    assert {key.stage for key in asks} == {"explore"}


@pytest.mark.parametrize(("candidates", "each"), [(1, 8), (13, 5), (50, 2)])
def test_the_first_round_takes_half_of_exploration_in_its_limits(candidates: int, each: int) -> None:
    asks = Exploration([Trace("c", (0.5,) * candidates, True)], SETTINGS).asks()

    assert len(asks) == candidates * each


def test_where_the_first_round_would_exceed_exploration_the_tokens_that_can_matter_most_get_it() -> None:
    unlikely, likely = Trace("c", (0.7, 0.2) * 20, True), Trace("d", (0.6,) * 60, True)

    asks = Exploration([likely, unlikely], SearchSettings(budget=40)).asks()

    assert len(asks) == 52  # 0.65 of 2 x 40
    assert {key.position for key in asks if key.completion_id == "c"} == set(range(1, 40, 2))
    assert {key.position for key in asks if key.completion_id == "d"} == set(range(6))


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 300))
def test_exploration_keeps_to_its_share_of_the_budget_of_all_completions(seed: int, budget: int) -> None:
    own = SearchSettings(budget=budget, ambiguity=0.001)
    chance = Random(seed)
    traces = [Trace(f"c{i}", tuple(chance.uniform(0.3, 1) for _ in range(15)), True) for i in range(3)]

    rounds = explore(traces, own, always(chance.choice([Verdict.CORRECT, Verdict.CENSORED])))

    assert sum(map(len, rounds)) <= own.explore_share * budget * len(traces)


def test_a_long_completion_adds_to_the_budget_in_proportion_to_its_candidates() -> None:
    def budget(candidates: int) -> int:
        return Exploration([Trace("c", (0.5,) * candidates, True)], SETTINGS).budget

    assert [budget(n) for n in (1, 70, 140, 700)] == [200, 200, 400, 2000]


@pytest.mark.parametrize("most", [10, 50])
def test_no_candidate_gets_more_than_the_most(most: int) -> None:
    own = SearchSettings(budget=5000, explore_most=most, ambiguity=1e-9, explore_first=8)
    traces, answer = simulated(unclear=UNCLEAR)

    asks = Counter(
        (key.completion_id, key.position) for asked in explore(traces, own, answer) for key in asked
    )

    assert max(asks.values()) == most


def test_what_stays_ambiguous_gets_larger_batches() -> None:
    traces, answer = simulated(unclear=UNCLEAR)

    rounds = explore(traces, SearchSettings(budget=5000, ambiguity=1e-9, explore_most=500), answer)

    assert len(rounds) < 16


def test_a_completion_without_candidates_adds_nothing_to_the_budget() -> None:
    certain = Trace("certain", (0.99, 1.0), succeeded=True)
    open_ = Trace("open", (0.5, 0.5), succeeded=True)

    assert Exploration([certain, open_], SETTINGS).pool == Exploration([open_], SETTINGS).pool == 130


def test_the_most_ambiguous_completion_gets_more() -> None:
    traces, answer = simulated(clear=CLEAR, unclear=UNCLEAR)

    asks = [key for asked in explore(traces, SETTINGS, answer) for key in asked]

    shares = [sum(key.completion_id == name for key in asks) for name in ("clear", "unclear")]
    assert shares[1] > 2 * shares[0]


def test_what_one_completion_leaves_another_may_use() -> None:
    decided = Trace("decided", (0.5,), True, known=(Outcome(Verdict.INCORRECT, 0),) * 60)
    own = SearchSettings(budget=40)

    asks = [key for asked in explore([decided, UNCLEAR.trace()], own, unclear_or_wrong) for key in asked]

    assert sum(key.completion_id == "c" for key in asks) > own.budget * own.explore_share


@pytest.mark.parametrize("verdict", list(Verdict))
def test_nothing_is_asked_twice(verdict: Verdict) -> None:
    traces, _ = simulated(a=CLEAR, b=UNCLEAR)

    asks = [key for asked in explore(traces, SETTINGS, always(verdict)) for key in asked]

    assert len(asks) == len(set(asks))


def test_only_candidates_are_rolled_from() -> None:
    trace = Trace("c", (0.5, 0.99, 0.2), succeeded=True)

    for asks in explore([trace], SETTINGS, always(Verdict.INCORRECT)):
        assert {key.position for key in asks} <= {0, 2}


def test_after_the_last_token_nothing_is_rolled_out() -> None:
    for asks in explore(
        [Trace("c", (0.5,), True)], SearchSettings(ambiguity=1e-9), always(Verdict.INCORRECT)
    ):
        assert {key.arm for key in asks} == {"alternative"}


def test_exploration_ends_when_nothing_is_ambiguous() -> None:
    traces, answer = simulated(a=planted(30, forks=[4], effects={20: 0.65}))

    rounds = explore(traces, SearchSettings(budget=10_000), answer)

    assert sum(map(len, rounds)) < 1_000


def test_the_order_of_completions_and_answers_changes_nothing() -> None:
    traces, answer = simulated(a=CLEAR, b=UNCLEAR, c=planted(20, forks=[3, 6], effects={10: 0.3}))

    def run(traces: Sequence[Trace], seed: int) -> tuple[list[list[RolloutKey]], Search]:
        search, rounds = Search(traces, SETTINGS), []
        while asks := search.asks():
            rounds.append(asks)
            shuffled = list(asks)
            Random(seed).shuffle(shuffled)
            search.tell({key: answer(key) for key in shuffled})
        return rounds, search

    (rounds, one), (other_rounds, other) = run(traces, 0), run(traces[::-1], 1)

    assert rounds == other_rounds
    assert (one.nominees, one.confirmations) == (other.nominees, other.confirmations)


def test_a_draw_counts_where_it_leaves_and_for_every_completion_that_it_is_a_draw_of() -> None:
    exploration = Exploration([Trace("a", (0.5, 0.99, 0.5), True), Trace("b", (0.5, 0.5), False)], SETTINGS)
    first, *_ = exploration.asks()

    also = (("b", 1), ("nowhere", 0))  # a sibling that isn't searched is left out
    exploration.tell({first: Outcome(Verdict.CORRECT, 2, also)})

    draws = {name: own.chain.draws.tolist() for name, own in exploration.explored.items()}
    assert draws == {"a": [[0, 0, 0], [0, 0, 0], [1, 0, 0]], "b": [[0, 0, 0], [1, 0, 0]]}


def test_what_was_drawn_before_the_search_counts_and_costs_nothing() -> None:
    known = tuple(Outcome(Verdict.INCORRECT, 0) for _ in range(40))
    informed, ignorant = (Trace("c", (0.5,), True, known=k) for k in (known, ()))

    assert Explored(informed, SETTINGS).chain.draws.tolist() == [[0, 40, 0]]
    asked = [
        sum(map(len, explore([trace], SETTINGS, always(Verdict.INCORRECT)))) for trace in (informed, ignorant)
    ]
    assert asked[0] <= asked[1]


def test_the_prior_is_learned_from_the_run_when_that_is_wanted() -> None:
    many = planted(30, forks=[], effects={5: 0.3, 15: -0.3, 25: 0.6})
    traces, answer = simulated(**{f"c{i}": many for i in range(6)})

    def prior_after(learn: bool) -> StepPrior:
        own = SearchSettings(budget=200, learn_prior=learn, prior_weight=1.0)
        exploration = Exploration(traces, own)
        while asks := exploration.asks():
            exploration.tell({key: answer(key) for key in asks})
        (prior,) = {one.chain._prior for one in exploration.explored.values()}
        return prior

    assert prior_after(learn=False) == StepPrior(SETTINGS.rho, SETTINGS.sd)
    assert prior_after(learn=True).rho > 0.3  # every candidate has an effect
