"""How a request of the engine ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from steering_engine.model import SteeredModel
from steering_spec import FinishReason, GenerationSpec, SamplingParams, Selector, SteeringRule
from tests.support.engine import (
    EOS,
    LETTER,
    Pieces,
    engine_request,
    engine_result,
    greedy,
    idle,
    ids_of,
    prompt,
    sampled,
)


class TestEnds:
    async def test_max_tokens_are_generated_and_not_one_more(self, model: SteeredModel) -> None:
        for count in (1, 2, 7):
            completion = await model.generate(greedy(5, tokens=count))
            assert len(completion.tokens) == completion.usage.generated_tokens == count
            assert completion.finish_reason is FinishReason.LENGTH

    async def test_an_end_token_ends_the_completion_and_is_no_text(self, model: SteeredModel) -> None:
        completion = await model.generate(greedy(5, SteeringRule("end", selector=Selector.steps(4))))
        assert len(completion.tokens) == 5
        assert completion.ids[-1] == EOS
        assert completion.finish_reason is FinishReason.EOS
        assert "<eos>" not in completion.text

    async def test_an_end_token_at_the_limit_is_an_end_token(self, model: SteeredModel) -> None:
        rule = SteeringRule("end", selector=Selector.steps(4))
        assert (await model.generate(greedy(5, rule, tokens=5))).finish_reason is FinishReason.EOS

    async def test_end_tokens_can_be_passed_over(self, model: SteeredModel) -> None:
        chunk = await engine_result(
            model, engine_request(model, greedy(5, SteeringRule("end"), tokens=4), "on and on")
        )
        assert ids_of(chunk) == [EOS] * 4
        assert chunk.finish_reason is FinishReason.LENGTH

    async def test_a_stop_sequence_ends_the_completion_before_it(self, model: SteeredModel) -> None:
        letter = model.loaded.tokenizer.decode([LETTER])
        rule = SteeringRule("letter", selector=Selector.step_window(3))
        spec = greedy(5, rule)
        free = await model.generate(spec)
        stopped = await model.generate(
            replace(spec, sampling=replace(spec.sampling, stop=(letter * 2, "never")))
        )
        assert free.text.endswith(letter * 9)
        assert stopped.finish_reason is FinishReason.STOP_SEQUENCE
        assert stopped.ids == free.ids[:5]
        assert letter * 2 not in stopped.text
        assert free.text.startswith(stopped.text + letter)

    async def test_until_ends_a_request_with_the_token_whose_text_it_was_waiting_for(
        self, model: SteeredModel
    ) -> None:
        requests = [engine_request(model, sampled(4 + n, seed=n, tokens=24), f"r{n}") for n in range(12)]
        free = [await engine_result(model, request) for request in requests]
        until = [Pieces(5 + n % 3) for n in range(12)]
        ended = await asyncio.gather(
            *(
                engine_result(model, replace(request, until=one))
                for request, one in zip(requests, until, strict=True)
            )
        )
        for whole, short, one in zip(free, ended, until, strict=True):
            assert short.finish_reason is FinishReason.STOP_SEQUENCE
            assert ids_of(short) == ids_of(whole)[: len(short.tokens)]
            assert "".join(one.pieces) == short.text
            assert len(one.pieces) == one.most
            assert all(one.pieces)
            assert whole.text.startswith(short.text)

    async def test_until_may_end_a_request_at_its_last_token(self, model: SteeredModel) -> None:
        request = engine_request(model, greedy(5, SteeringRule("letter"), tokens=3), "last")
        ended = await engine_result(model, replace(request, until=Pieces(3)))
        assert len(ended.tokens) == 3
        assert ended.finish_reason is FinishReason.STOP_SEQUENCE

    async def test_until_is_told_no_part_of_a_stop_sequence(self, model: SteeredModel) -> None:
        letter = model.loaded.tokenizer.decode([LETTER])
        spec = greedy(5, SteeringRule("letter"), tokens=6, stop=(letter * 4,))
        until = Pieces(99)
        ended = await engine_result(model, replace(engine_request(model, spec, "stop"), until=until))
        assert ended.finish_reason is FinishReason.STOP_SEQUENCE
        assert len(ended.tokens) == 4
        assert until.pieces == []

    async def test_until_that_raises_fails_its_own_request_alone(self, model: SteeredModel) -> None:
        def broken(piece: str) -> bool:
            raise LookupError(piece)

        specs = [greedy(4, SteeringRule("letter"), seed=n, tokens=20) for n in range(3)]
        requests = [engine_request(model, spec, f"r{n}") for n, spec in enumerate(specs)]
        expected = [await engine_result(model, request) for request in requests]
        requests[1] = replace(requests[1], until=broken)
        results = await asyncio.gather(
            *(engine_result(model, request) for request in requests), return_exceptions=True
        )
        assert isinstance(results[1], LookupError)
        assert [ids_of(results[n]) for n in (0, 2)] == [ids_of(expected[n]) for n in (0, 2)]  # type: ignore[arg-type]
        await idle(model)

    async def test_prompt_and_completion_may_fill_the_whole_context(self, cramped: SteeredModel) -> None:
        room = cramped.info.facts.max_context_tokens
        completion = await cramped.generate(greedy(room - 3, tokens=3))
        assert len(completion.tokens) == 3

    async def test_without_a_number_of_tokens_the_default_or_the_room_counts(
        self, cramped: SteeredModel
    ) -> None:
        facts = cramped.info.facts
        assert facts.max_context_tokens < facts.default_max_tokens
        spec = GenerationSpec(prompt(20), SamplingParams(temperature=0))
        (request,) = cramped._requests(spec, "default", cramped.vectors.lease(), streaming=False)
        assert request.sampling.max_tokens == facts.max_context_tokens - 20
