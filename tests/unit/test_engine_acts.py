"""What an engine says that steering did."""

from __future__ import annotations

from dataclasses import replace

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import (
    Clause,
    ContextTrigger,
    Phase,
    Positions,
    Selector,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    TriggerKind,
)
from tests.support.engine import engine_request, engine_result, greedy
from tests.support.vectors import random_vector


class TestActs:
    async def test_steps_are_told_one_by_one(self, model: SteeredModel) -> None:
        completion = await model.generate(greedy(9, SteeringRule("one", layers=(2, 0)), tokens=3))
        assert completion.acts == tuple(SteeringAct(0, (0, 2), step=step) for step in range(3))

    async def test_prompt_positions_are_told_as_such(self, model: SteeredModel) -> None:
        rule = SteeringRule("two", selector=Selector.prompt_positions(0, -1))
        completion = await model.generate(greedy(9, rule, tokens=3))
        assert completion.acts == (
            SteeringAct(0, (1,), prompt_position=0), SteeringAct(0, (1,), prompt_position=8),
        )  # fmt: skip

    async def test_a_row_steered_by_several_rules_counts_once(self, model: SteeredModel) -> None:
        rules = (
            SteeringRule("two", selector=Selector.prompt_positions(-1)),
            SteeringRule("one", selector=Selector.steps(0, 1)),
        )
        completion = await model.generate(greedy(9, *rules, tokens=3))
        assert len(completion.acts) == 3
        assert completion.usage.steered_rows == 2

    async def test_excluded_rows_are_not_steered(self, model: SteeredModel) -> None:
        selector = Selector(exclude=(Clause(Phase.GENERATION, Positions((1,))), Clause(Phase.PROMPT)))
        completion = await model.generate(greedy(9, SteeringRule("two", selector=selector), tokens=4))
        assert [act.step for act in completion.acts] == [2, 3]

    async def test_a_context_in_the_completion_fires_at_the_step_after_it(self, model: SteeredModel) -> None:
        plain = await model.generate(greedy(9, tokens=12))
        vector = random_vector(model.loaded, "seen", [1], seed=6, contexts=[plain.ids[4:6]], min_match=2)
        model.vectors.load("seen", encode_vector(vector))
        rule = SteeringRule("seen", trigger=ContextTrigger(max_firings=1))
        completion = await model.generate(greedy(9, rule, tokens=12))
        assert completion.acts == (SteeringAct(0, (1,), step=6, trigger=TriggerKind.CONTEXT, score=2.0),)
        assert completion.ids[:6] == plain.ids[:6]
        assert completion.tokens[6] != plain.tokens[6]

    async def test_the_steering_as_applied_names_the_exact_file(self, model: SteeredModel) -> None:
        completion = await model.generate(greedy(9, SteeringRule("two")))
        digest = next(info.sha256 for info in model.vectors.infos() if info.name == "vectors/two")
        assert completion.applied_steering == SteeringSpec(
            (SteeringRule(f"vectors/two@{digest}", layers=(1,)),)
        )

    async def test_steered_rows_are_counted(self, model: SteeredModel) -> None:
        before = model.stats().steered_rows
        await model.generate(greedy(9, SteeringRule("two"), tokens=5))
        assert model.stats().steered_rows - before == 5

    async def test_without_a_trace_steered_rows_are_counted_and_no_act_is_told(
        self, model: SteeredModel
    ) -> None:
        rule = SteeringRule("two", selector=Selector((Clause(Phase.PROMPT), Clause(Phase.GENERATION))))
        traced = engine_request(model, greedy(9, rule, tokens=4), "traced")
        quiet = replace(traced, request_id="quiet", trace=False)
        for request, acts in ((traced, 12), (quiet, 0)):
            chunk = await engine_result(model, request)
            assert (chunk.steered_rows, len(chunk.acts)) == (12, acts)

    async def test_every_chunk_tells_the_steered_rows_that_led_to_its_tokens(
        self, model: SteeredModel
    ) -> None:
        rule = SteeringRule("two", selector=Selector.step_window(2))
        request = engine_request(model, greedy(9, rule, tokens=12), "streamed")
        step = 0
        async for chunk in model.engine.submit(replace(request, streaming=True)):
            steps = range(step, step + len(chunk.tokens))
            assert chunk.steered_rows == len([one for one in steps if one >= 2])
            step = steps.stop
        assert step == 12
