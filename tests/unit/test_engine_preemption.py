"""Requests that have to give up their pages while they run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import ContextTrigger, GenerationSpec, Selector, SteeringRule
from tests.support.engine import collect, greedy, idle, processor, sampled, together
from tests.support.vectors import random_vector


class TestPreemption:
    """The cache is too small for all requests, so the library takes pages from some and starts them again."""

    def specs(self, contexts_of: str) -> list[GenerationSpec]:
        steerings: list[tuple[SteeringRule, ...]] = [
            (),
            (SteeringRule("one", 0.5),),
            (
                SteeringRule("two", selector=Selector.prompt_window(3, 9)),
                SteeringRule("one", selector=Selector.steps(7)),
            ),
            (SteeringRule(contexts_of, trigger=ContextTrigger(hold_steps=2, max_firings=1)),),
            (SteeringRule("two", -1.0, selector=Selector.step_window(5)),),
            (),
        ]
        return [sampled(20 + n, *rules, seed=n, tokens=45) for n, rules in enumerate(steerings)]

    async def test_everyone_gets_what_it_gets_alone(
        self, model: SteeredModel, cramped: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = await model.generate(sampled(23, seed=3, tokens=45))
        context = plain.ids[10:13]
        pivot = random_vector(model.loaded, "pivot", [1, 2], seed=8, contexts=[context], min_match=3)
        for engine in (model, cramped):
            engine.vectors.load("pivot", encode_vector(pivot))
        specs = self.specs("pivot")
        alone = [await model.generate(spec) for spec in specs]
        assert [act.step for act in alone[3].acts] == [13, 14]
        restarts = self.count_restarts(cramped, monkeypatch)
        crowd = await asyncio.wait_for(together(cramped, specs), 120)
        assert restarts
        assert [completion.ids for completion in crowd] == [completion.ids for completion in alone]
        assert [completion.acts for completion in crowd] == [completion.acts for completion in alone]
        assert [completion.text for completion in crowd] == [completion.text for completion in alone]

    def count_restarts(self, model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        restarts: list[str] = []
        scheduler = processor(model).scheduler
        add = scheduler.add_waiting_request

        def note(state: Any) -> None:
            if state._true_initial_tokens:
                restarts.append(state.request_id)
            add(state)

        monkeypatch.setattr(scheduler, "add_waiting_request", note)
        return restarts

    async def test_when_the_request_that_kept_its_pages_is_cancelled_the_others_go_on(
        self, cramped: SteeredModel
    ) -> None:
        scheduler = processor(cramped).scheduler
        streams = {
            seed: asyncio.create_task(collect(cramped, greedy(40, seed=seed, tokens=70))) for seed in range(4)
        }
        while not scheduler.block_new_requests:
            await asyncio.sleep(0)
            assert not all(task.done() for task in streams.values()), "no request was preempted"
        # Whoever is active now is cancelled: then nobody finishes, which is what the library waits for.
        active = [scheduler.active_requests[key].run for key in list(scheduler.active_requests)]
        for run in active:
            cramped.engine.cancel(run.request.request_id)
        done = await asyncio.wait_for(asyncio.gather(*streams.values(), return_exceptions=True), 60)
        finished = [one for one in done if not isinstance(one, BaseException)]
        assert len(finished) >= 4 - len(active) > 0
        await idle(cramped)
