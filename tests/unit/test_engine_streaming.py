"""Streams of the engine, and requests that are given up."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.model import SteeredModel
from steering_spec import Completion, SteeringRule
from tests.support.engine import busy, collect, greedy, idle, processor, sampled, together


class TestStreaming:
    @pytest.mark.parametrize("repeat", range(5))
    async def test_the_deltas_add_up_to_the_completion_and_to_that_of_a_plain_request(
        self, repeat: int, model: SteeredModel
    ) -> None:
        specs = [sampled(20 + n, SteeringRule("one", 0.3), seed=n + 10 * repeat, tokens=20) for n in range(6)]
        streams = await asyncio.gather(*(collect(model, spec) for spec in specs))
        plain = await together(model, specs)
        for (deltas, completion), same in zip(streams, plain, strict=True):
            assert "".join(delta.text for delta in deltas) == completion.text == same.text
            assert tuple(token for delta in deltas for token in delta.tokens) == completion.tokens
            assert tuple(act for delta in deltas for act in delta.acts) == completion.acts == same.acts
            assert completion.ids == same.ids
            assert completion.finish_reason is same.finish_reason

    async def test_every_delta_has_tokens_and_exactly_the_acts_that_led_to_them(
        self, model: SteeredModel
    ) -> None:
        deltas, _ = await collect(model, sampled(70, SteeringRule("one", 0.3), tokens=30))
        assert len(deltas) > 1
        step = 0
        for delta in deltas:
            assert delta.tokens
            steps = range(step, step + len(delta.tokens))
            assert [act.step for act in delta.acts] == list(steps)
            step = steps.stop

    async def test_a_reader_that_pauses_gets_everything(self, model: SteeredModel) -> None:
        spec = greedy(6, SteeringRule("two"), tokens=30)
        events = []
        async with aclosing(model.stream(spec)) as stream:
            async for event in stream:
                events.append(event)
                await asyncio.sleep(0.03)
        assert isinstance(events[-1], Completion)
        assert events[-1].ids == (await model.generate(spec)).ids

    async def test_without_a_trace_no_acts_are_told(self, model: SteeredModel) -> None:
        deltas, completion = await collect(
            model, replace(greedy(6, SteeringRule("two")), steering_trace=False)
        )
        assert completion.acts == ()
        assert all(delta.acts == () for delta in deltas)
        assert completion.usage.steered_rows == 12


class TestCancelling:
    async def test_closing_the_iterator_frees_the_row_and_its_pages(self, own: SteeredModel) -> None:
        free = own.stats().free_cache_tokens
        async with aclosing(own.stream(greedy(40, tokens=200))) as events:
            await anext(events)
            assert own.stats().active_requests == 1
            assert own.stats().free_cache_tokens < free
        await idle(own)
        assert own.stats().free_cache_tokens == free == 1024

    async def test_cancelling_the_task_frees_the_row(self, model: SteeredModel) -> None:
        task = asyncio.create_task(model.generate(greedy(40, tokens=200)))
        await busy(model)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(model)

    async def test_a_request_cancelled_by_its_id_ends_without_a_reason(self, model: SteeredModel) -> None:
        request = EngineRequest("mine", (2, 3), Sampling(0.0, 1.0, 0, 200, 0), streaming=True)
        chunks = []
        async for chunk in model.engine.submit(request):
            chunks.append(chunk)
            model.engine.cancel("mine")
        assert chunks
        assert all(chunk.finish_reason is None for chunk in chunks)
        model.engine.cancel("unknown")
        await idle(model)

    async def test_an_id_can_be_used_again_at_once(self, model: SteeredModel) -> None:
        request = EngineRequest("again", (2, 3), Sampling(0.0, 1.0, 0, 50, 0), streaming=True)
        for _ in range(20):
            async with aclosing(model.engine.submit(request)) as chunks:
                await asyncio.wait_for(anext(chunks), 10)
        await idle(model)

    async def test_the_others_go_on(self, model: SteeredModel) -> None:
        mine = greedy(8, seed=3, tokens=30)
        alone = await model.generate(mine)
        task = asyncio.create_task(model.generate(mine))
        for seed in range(5):
            async with aclosing(model.stream(greedy(30, seed=seed, tokens=100))) as events:
                await anext(events)
        assert (await task).ids == alone.ids
        await idle(model)

    async def test_nothing_is_kept_of_requests_that_are_over(self, model: SteeredModel) -> None:
        async def worker(number: int) -> None:
            for round_ in range(8):
                await model.generate(sampled(4 + number, seed=round_, tokens=3))

        before = model.stats().generated_tokens
        await asyncio.gather(*(worker(number) for number in range(8)))
        await idle(model)
        assert model.stats().generated_tokens - before == 8 * 8 * 3
        engine: Any = model.engine
        assert engine._runs == engine._running == {}
        assert processor(model).output_router.output_queue.empty()
        assert model.stats().free_cache_tokens == 4096
