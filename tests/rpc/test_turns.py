"""Requests enter the engine in fair order, and the engine always has enough of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from steering.v1 import generation_pb2, generation_pb2_grpc
from steering_engine.engine.base import EngineRequest, EngineStats, Sampling
from steering_server.rpc.turns import Turns
from tests.support.server import LiveServer, wait_until

REQUEST = EngineRequest("r", (1,) * 10, Sampling(0, 1, 0, 1, 0))
ROWS = 8
INSIDE = ROWS + 1  # one more, so that no row stays empty


class Engine:
    """Says of itself what it is told to, and notes in which order requests come in."""

    def __init__(self) -> None:
        self.load = EngineStats(0, 0, 0, 0, free_cache_tokens=10**6)
        self.turns = Turns(ROWS, lambda: self.load)
        self.entered: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, name: str, completions: int = 1, tokens: int = 10) -> None:
        """Sends a request; the first letter of its name is its connection."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, completions, tokens))
        await asyncio.sleep(0)

    async def fill(self, connection: str, count: int) -> None:
        for index in range(count):
            await self.send(f"{connection}{index}")

    async def _run(self, name: str, completions: int, tokens: int) -> None:
        requests = [replace(REQUEST, prompt_ids=(1,) * tokens)] * completions
        async with self.turns.turn(name[0], requests):
            self.entered.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> list[str]:
        """Ends requests; returns which others came in."""
        before = len(self.entered)
        for name in names:
            self._ends[name].set()
            await self._tasks[name]
        await asyncio.sleep(0)
        return self.entered[before:]

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])
        await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.wait(self._tasks.values())
        assert self.turns.waiting == 0


@pytest.fixture
async def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    await made.close()


async def test_as_many_enter_as_can_run_and_one_more(engine: Engine) -> None:
    await engine.fill("a", 20)
    assert engine.entered == [f"a{index}" for index in range(INSIDE)]
    assert engine.turns.waiting == 20 - INSIDE
    assert await engine.end("a3", "a5") == ["a9", "a10"]


async def test_within_a_connection_the_first_comes_first(engine: Engine) -> None:
    await engine.fill("a", 30)
    for index in range(20):
        await engine.end(f"a{index}")
    assert engine.entered == [f"a{index}" for index in range(20 + INSIDE)]


async def test_one_request_waits_for_one_turn_not_for_a_thousand(engine: Engine) -> None:
    await engine.fill("a", 1000)
    await engine.send("b0")
    assert await engine.end("a0") == ["b0"]


async def test_connections_take_turns(engine: Engine) -> None:
    await engine.fill("a", 30)
    await engine.fill("b", 30)
    await engine.fill("c", 1)
    came = [name for index in range(9) for name in await engine.end(f"a{index}")]
    assert [name[0] for name in came] == ["b", "c", "a", "b", "a", "b", "a", "b", "a"]


async def test_who_asks_for_many_completions_at_a_time_gets_no_more_of_them(engine: Engine) -> None:
    await engine.fill("x", INSIDE)
    for index in range(10):
        await engine.send(f"a{index}", completions=4)
    await engine.fill("b", 30)
    ended = [f"x{index}" for index in range(INSIDE)]
    came: list[str] = []
    while len(came) < 15:
        new = await engine.end(ended.pop(0))
        came += new
        ended += new
    assert sum(name[0] == "b" for name in came) == 12
    assert sum(name[0] == "a" for name in came) == 3


async def test_who_comes_back_at_once_is_not_forgotten_what_it_had(engine: Engine) -> None:
    await engine.fill("x", INSIDE)
    await engine.fill("b", 8)
    await engine.send("a0", completions=4)
    assert [*await engine.end("x0"), *await engine.end("x1")] == ["b0", "a0"]
    await engine.send("a1")  # its connection had four rows while the other had one
    ends = [*(f"x{index}" for index in range(2, 9)), "b0"]
    came = [name for one in ends for name in await engine.end(one)]
    assert came == ["b1", "b2", "b3", "b4", "a1"]


async def test_who_was_away_has_saved_nothing_up(engine: Engine) -> None:
    await engine.fill("a", 40)
    for index in range(20):
        await engine.end(f"a{index}")
    await engine.fill("b", 5)
    came = [name for index in range(20, 26) for name in await engine.end(f"a{index}")]
    assert [name[0] for name in came] == ["b", "a", "b", "a", "b", "a"]


async def test_a_cancelled_wait_costs_its_connection_nothing(engine: Engine) -> None:
    await engine.fill("a", INSIDE)
    await engine.fill("b", 10)
    for index in range(10):
        await engine.cancel(f"b{index}")
    assert engine.turns.waiting == 0
    await engine.fill("c", 3)
    await engine.send("b10")
    assert [*await engine.end("a0"), *await engine.end("a1")] == ["c0", "b10"]


async def test_a_turn_that_is_given_while_its_request_is_cancelled_goes_to_the_next(engine: Engine) -> None:
    await engine.fill("a", INSIDE + 2)
    engine._tasks["a9"].cancel()  # has not run yet when the turn becomes free
    assert await engine.end("a0") == ["a10"]


async def test_a_request_of_more_completions_than_there_are_rows_runs(engine: Engine) -> None:
    await engine.send("a0", completions=128)
    assert engine.entered == ["a0"]
    await engine.send("b0")
    assert await engine.end("a0") == ["b0"]


async def test_what_the_cache_can_not_take_now_waits_here(engine: Engine) -> None:
    engine.load = replace(engine.load, free_cache_tokens=100)
    await engine.send("a0", tokens=60)
    engine.load = replace(engine.load, waiting_requests=1)
    await engine.send("a1", tokens=60)
    await engine.send("a2", tokens=20)  # would fit, and is not let past the one before it
    assert engine.entered == ["a0"]
    engine.load = replace(engine.load, free_cache_tokens=120)  # pages come free without a word
    wait = asyncio.get_running_loop().time() + 30
    while engine.entered == ["a0"]:
        assert asyncio.get_running_loop().time() < wait
        await asyncio.sleep(0.01)
    assert engine.entered[1] == "a1"


async def test_an_engine_that_holds_nothing_back_gets_one_more_whatever_its_cache_says(
    engine: Engine,
) -> None:
    engine.load = replace(engine.load, free_cache_tokens=0)
    await engine.fill("a", 3)
    assert engine.entered == ["a0", "a1", "a2"]


def test_a_server_answers_one_request_amid_many_of_another_connection(model_folder: Path) -> None:
    sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=12)
    request = generation_pb2.GenerateRequest(spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling))
    own = ("grpc.use_local_subchannel_pool", 1)
    with (
        LiveServer(model_folder, max_concurrent=2, metrics_port=0) as server,
        server.channel(own) as crowd,
        server.channel(own) as one,
    ):
        ended: list[str] = []

        def send(channel: grpc.Channel, name: str) -> grpc.Future:
            call = generation_pb2_grpc.GenerationServiceStub(channel).Generate.future(request)
            call.add_done_callback(lambda _: ended.append(name))
            return call

        calls: list[Future[object]] = [send(crowd, "crowd") for _ in range(60)]
        wait_until(lambda: server.metrics()["steering_waiting_requests"] >= 40)
        send(one, "one").result(60)
        assert server.metrics()["steering_waiting_requests"] > 0
        for call in calls:
            call.result(60)
    assert ended.index("one") < 45
