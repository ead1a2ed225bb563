"""Completions of one prompt that end early, fail, or have to give up their pages: the others go on as if alone."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steering_engine.engine.base import EngineChunk, EngineRequest
from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.errors import EngineStoppedError, NotFiniteError
from steering_engine.model import SteeredModel
from steering_spec import FinishReason, Selector, SteeringRule
from tests.support.engine import (
    HeldForward,
    Pieces,
    engine_request,
    engine_result,
    forget_pages,
    greedy,
    idle,
    processor,
    running,
    sampled,
)
from tests.support.models import save_tiny_model
from tests.support.siblings import COUNT, one_by_one, requests_of, siblings, told

EXAMPLES = 4
LONG = 100  # two forwards of the engine that these tests share


@dataclass(frozen=True)
class Group:
    """Completions of a prompt, and which of them are cancelled after so many milliseconds."""

    length: Annotated[int, st.integers(1, 70)]
    tokens: Annotated[int, st.integers(1, 30)]
    count: Annotated[int, st.integers(1, 5)]
    cancelled: Annotated[frozenset[int], st.frozensets(st.integers(0, 4), max_size=3)]
    delay: Annotated[int, st.integers(0, 20)]
    steered: bool

    def requests(self, model: SteeredModel, number: int) -> list[EngineRequest]:
        rules = (SteeringRule("one", 0.3),) if self.steered else ()
        spec = sampled(self.length, *rules, seed=self.length, tokens=self.tokens)
        return [
            replace(one, request_id=f"{number} {one.request_id}")
            for one in requests_of(model, spec, self.count)
        ]

    async def run(self, model: SteeredModel, number: int) -> dict[int, EngineChunk]:
        """The results of those that are not cancelled, or not in time."""
        requests = self.requests(model, number)
        task = asyncio.create_task(finished(model, requests))
        await asyncio.sleep(self.delay / 1000)
        for index in self.cancelled & set(range(self.count)):
            model.engine.cancel(requests[index].request_id)
        found = await task
        assert set(range(self.count)) - self.cancelled <= found.keys()
        return found


async def finished(model: SteeredModel, requests: list[EngineRequest]) -> dict[int, EngineChunk]:
    """The results of those that end by themselves."""
    return {
        index: chunk
        async for index, chunk in model.engine.submit_many(requests)
        if chunk.finish_reason is not None
    }


async def nothing_left(model: SteeredModel) -> None:
    """Waits for the engine to be idle, and checks that it keeps nothing of any request."""
    await idle(model)
    engine: Any = model.engine
    assert engine._runs == engine._running == {}
    forget_pages(model)
    assert model.stats().free_cache_tokens == engine._limits.cache_tokens
    assert all(not one.block_table for one in processor(model).cache.cache_allocators.values())


class TestCancelling:
    @pytest.mark.parametrize(
        "cancelled", [{0}, {3}, {0, 1, 5}, set(range(1, COUNT)), set(range(COUNT - 1))], ids=str
    )
    @pytest.mark.parametrize("forward", [1, 2, 3, 4])
    async def test_the_others_are_what_they_are_alone(
        self, cancelled: set[int], forward: int, model: SteeredModel
    ) -> None:
        # The prompt takes two forwards; the third is that of its last row, for each of the completions.
        requests = requests_of(model, sampled(LONG, SteeringRule("one", 0.3)))
        alone = await one_by_one(model, requests)
        others = set(range(COUNT)) - cancelled
        with HeldForward(model, forward) as held:
            task = asyncio.create_task(finished(model, requests))
            await held.begun()
            for number in cancelled:
                model.engine.cancel(requests[number].request_id)
            await asyncio.sleep(0.05)  # this loop takes note of them
            assert len(model.engine._running) == len(others)  # type: ignore[attr-defined]
        found = await asyncio.wait_for(task, 20)
        assert found.keys() == others
        assert told([found[n] for n in sorted(others)]) == told([alone[n] for n in sorted(others)])
        await nothing_left(model)

    @pytest.mark.parametrize("forward", [1, 2, 3, 4])
    async def test_closing_the_iterator_ends_them_all(self, forward: int, model: SteeredModel) -> None:
        requests = [replace(one, streaming=True) for one in requests_of(model, sampled(LONG, tokens=100))]
        with HeldForward(model, forward) as held:
            task = asyncio.create_task(finished(model, requests))
            await held.begun()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await nothing_left(model)

    async def test_cancelling_each_of_them_ends_the_iterator(self, model: SteeredModel) -> None:
        requests = [replace(one, streaming=True) for one in requests_of(model, sampled(LONG, tokens=100))]
        seen = set()
        async for index, chunk in model.engine.submit_many(requests):
            assert chunk.finish_reason is None
            seen.add(index)
            model.engine.cancel(requests[index].request_id)
        assert seen == set(range(COUNT))
        await nothing_left(model)

    async def test_an_id_can_be_used_again_when_its_last_chunk_is_there(self, model: SteeredModel) -> None:
        requests = requests_of(model, sampled(20, tokens=3))
        async with aclosing(model.engine.submit_many(requests)) as chunks:
            async for index, _ in chunks:
                await engine_result(model, requests[index])
        await nothing_left(model)


class TestFailing:
    async def test_an_error_of_one_is_the_error_of_all(self, model: SteeredModel) -> None:
        rule = SteeringRule("endless", 1000.0, selector=Selector.steps(6))
        with pytest.raises(NotFiniteError, match="the logits of token 6 are not finite"):
            await siblings(model, requests_of(model, sampled(LONG, rule)))
        await nothing_left(model)

    async def test_each_has_its_own_until(self, model: SteeredModel) -> None:
        requests = requests_of(model, greedy(20, SteeringRule("letter"), tokens=30))
        until = [Pieces(2 + n) for n in range(COUNT)]
        found = await siblings(
            model, [replace(one, until=own) for one, own in zip(requests, until, strict=True)]
        )
        assert [len(chunk.tokens) for chunk in found] == [2 + n for n in range(COUNT)]
        assert {chunk.finish_reason for chunk in found} == {FinishReason.STOP_SEQUENCE}
        await nothing_left(model)

    @pytest.mark.parametrize("forward", [1, 2])
    async def test_an_engine_that_is_closed_lets_none_of_them_wait(
        self, forward: int, own: SteeredModel
    ) -> None:
        with HeldForward(own, forward) as held:
            task = asyncio.create_task(finished(own, requests_of(own, sampled(LONG))))
            await held.begun()
            closing = asyncio.create_task(own.close())
            await asyncio.sleep(0.05)
        with pytest.raises(EngineStoppedError, match="the engine was closed"):
            await asyncio.wait_for(task, 10)
        await closing


class TestWithoutRoom:
    """The cache holds ten pages."""

    async def test_copies_that_do_not_fit_begin_anew(
        self, cramped: SteeredModel, model: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun_anew = note_restarts(cramped, monkeypatch)
        spec = sampled(70, SteeringRule("one", 0.3), tokens=20)
        expected = told(await one_by_one(model, requests_of(model, spec)))
        assert told(await siblings(cramped, requests_of(cramped, spec))) == expected
        assert any("child" in request_id for request_id, _ in begun_anew)
        assert {copies for _, copies in begun_anew} == {0}
        await nothing_left(cramped)

    async def test_a_request_that_loses_its_pages_before_it_is_copied_is_copied_later(
        self, folder: Path, model: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = sampled(LONG, SteeringRule("one", 0.3), tokens=20)
        expected = told(await one_by_one(model, requests_of(model, spec)))
        limits = {"cache_tokens": 10 * PAGE_TOKENS, "max_batch_tokens": 64, "max_concurrent_requests": 16}
        with running(folder, **limits) as small:
            begun_anew = note_restarts(small, monkeypatch)
            # Three prompts take six pages, and leave room for the first ten rows of the fourth; when it wants its other
            # pages, three are left.
            others = [engine_request(small, sampled(18, seed=n, tokens=30), f"other {n}") for n in range(3)]
            with HeldForward(small) as held:
                tasks = [
                    asyncio.create_task(engine_result(small, engine_request(small, greedy(2, tokens=1), "")))
                ]
                await held.begun()
                tasks += [asyncio.create_task(engine_result(small, other)) for other in others]
                await asyncio.sleep(0)
                mine = asyncio.create_task(siblings(small, requests_of(small, spec)))
                await asyncio.sleep(0.01)
            assert told(await asyncio.wait_for(mine, 60)) == expected
            await asyncio.gather(*tasks)
            assert COUNT - 1 in {copies for _, copies in begun_anew}
            await nothing_left(small)

    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
    def test_however_they_come_and_go(self, family: str, tmp_path: Path) -> None:
        folder = save_tiny_model(tmp_path / "tiny", family)
        limits = {"cache_tokens": 8 * PAGE_TOKENS, "max_batch_tokens": 20, "max_concurrent_requests": 5}
        with running(folder, cache_tokens=4096) as reference, running(folder, **limits) as small:

            async def all_of(groups: list[Group]) -> None:
                found = await asyncio.gather(*(group.run(small, n) for n, group in enumerate(groups)))
                await nothing_left(small)
                for group, results in zip(groups, found, strict=True):
                    alone = await one_by_one(reference, group.requests(reference, 0))
                    for index, chunk in results.items():
                        assert told([chunk]) == told([alone[index]])

            @given(st.lists(st.builds(Group), min_size=1, max_size=4))
            @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
            def check(groups: list[Group]) -> None:
                asyncio.run(asyncio.wait_for(all_of(groups), 60))

            check()


def note_restarts(model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Ids and copies to make of the requests that begin anew from now on."""
    found: list[tuple[str, int]] = []
    scheduler = processor(model).scheduler
    add = scheduler.add_waiting_request

    def note(state: Any) -> None:
        if state._true_initial_tokens:
            found.append((state.request_id, state.num_children))
        add(state)

    monkeypatch.setattr(scheduler, "add_waiting_request", note)
    return found
