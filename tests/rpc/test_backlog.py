"""The bounds on unfinished requests, and after how long a refused one is told to come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from steering_server.errors import ConnectionFullError, QueueFullError
from steering_server.rpc.backlog import LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS, Backlog


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(backlog: Backlog, connection: str = "other", completions: int = 1) -> QueueFullError:
    with pytest.raises(QueueFullError) as caught, backlog.place(connection, completions):
        pass
    return caught.value


def hold(backlog: Backlog, clock: Clock, seconds: float, completions: int = 1) -> None:
    with backlog.place("past", completions):
        clock.now += seconds


def test_places_are_given_back_however_a_request_ends() -> None:
    backlog = Backlog(3)
    with backlog.place("a", 2):
        assert backlog.held == 2
        with pytest.raises(KeyError), backlog.place("b"):
            raise KeyError
        assert backlog.held == 2
        assert type(refusal(backlog, completions=2)) is QueueFullError
    assert backlog.held == 0


def test_a_connection_has_a_limit_of_its_own_and_others_are_let_in() -> None:
    backlog = Backlog(4, connection_limit=2)
    with backlog.place("a"), backlog.place("a"):
        assert type(refusal(backlog, "a")) is ConnectionFullError
        with backlog.place("b", 2):
            assert type(refusal(backlog, "c")) is QueueFullError
    with backlog.place("a", 2):
        pass


def test_a_request_of_more_completions_than_a_connection_may_have_takes_all_its_places() -> None:
    backlog = Backlog(8, connection_limit=2)
    with backlog.place("a", 100):
        assert backlog.held == 2
        assert type(refusal(backlog, "a")) is ConnectionFullError


def test_without_a_past_the_wait_is_guessed() -> None:
    backlog = Backlog(2, clock=Clock())
    with backlog.place("a", 2):
        # Two places that are held for a second each: one of them is free after half of it.
        assert refusal(backlog).retry_seconds == 0.5
        assert refusal(backlog, completions=2).retry_seconds == 1.0


def test_the_wait_is_that_of_places_that_are_held_as_long_as_those_before() -> None:
    clock = Clock()
    backlog = Backlog(4, clock=clock)
    hold(backlog, clock, seconds=8)
    with backlog.place("a", 4):
        assert refusal(backlog).retry_seconds == 2.0
        assert refusal(backlog, completions=3).retry_seconds == 6.0
        assert "try again in 6.0 s" in str(refusal(backlog, completions=3))


def test_the_wait_grows_with_the_age_of_what_is_running() -> None:
    clock = Clock()
    backlog = Backlog(2, clock=clock)
    hold(backlog, clock, seconds=1)
    with backlog.place("a"):
        clock.now += 30
        with backlog.place("a"):
            clock.now += 10
            assert refusal(backlog).retry_seconds == (40 + 10) / 2 / 2


def test_the_wait_of_a_connection_is_that_of_its_own_places() -> None:
    clock = Clock()
    backlog = Backlog(100, connection_limit=2, clock=clock)
    hold(backlog, clock, seconds=6)
    with backlog.place("a", 2), backlog.place("b", 2):
        assert refusal(backlog, "a").retry_seconds == 3.0


def test_the_wait_has_bounds() -> None:
    clock = Clock()
    backlog = Backlog(1, clock=clock)
    hold(backlog, clock, seconds=0.001)
    with backlog.place("a"):
        assert refusal(backlog).retry_seconds == LEAST_RETRY_SECONDS
        clock.now += 1e6
        assert refusal(backlog).retry_seconds == MOST_RETRY_SECONDS


def test_the_past_is_forgotten_as_newer_places_are_given_back() -> None:
    clock = Clock()
    backlog = Backlog(1, clock=clock)
    hold(backlog, clock, seconds=50)
    for _ in range(100):
        hold(backlog, clock, seconds=2)
    with ExitStack() as held:
        held.enter_context(backlog.place("a"))
        assert refusal(backlog).retry_seconds == pytest.approx(2, rel=0.01)
