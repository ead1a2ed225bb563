from __future__ import annotations

from steering_pts.data import Problem
from steering_pts.oracles import make_oracle
from steering_pts.watching import until_for

PROBLEM = Problem("p", "How many?", "18")


def test_an_oracle_that_needs_the_end_ends_no_rollout() -> None:
    assert until_for(make_oracle("exact"), PROBLEM, "") is None


def test_a_rollout_ends_once_its_answer_is_closed() -> None:
    until = until_for(make_oracle("math"), PROBLEM, "")

    assert until is not None
    assert [until(piece) for piece in ("It is\n", "#### 1", "8", "\n")] == [False, False, False, True]


def test_an_answer_may_begin_in_the_text_before_the_rollout() -> None:
    until = until_for(make_oracle("math"), PROBLEM, "It is\n#### 1")

    assert until is not None
    assert [until(piece) for piece in ("8", "\n")] == [False, True]


def test_every_rollout_has_a_watcher_of_its_own() -> None:
    oracle = make_oracle("math")
    first, second = (until_for(oracle, PROBLEM, "") for _ in range(2))

    assert first is not None
    assert second is not None
    assert (first("#### 18\n"), second("It is")) == (True, False)


def test_a_rollout_behind_a_closed_answer_is_not_ended_at_once() -> None:
    assert until_for(make_oracle("math"), PROBLEM, "#### 18\n") is None
