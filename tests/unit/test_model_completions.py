"""Several completions of one spec: their order, their seeds, and how they are streamed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from steering_engine.errors import EngineStoppedError
from steering_engine.model import SteeredModel
from steering_spec import (
    Completion,
    FinishReason,
    GenerationSpec,
    InvalidRequestError,
    SteeringRule,
    StreamDelta,
)
from tests.support.engine import EOS, LETTER, busy, forget_pages, greedy, idle, sampled

COUNT = 4


def several(spec: GenerationSpec, count: int = COUNT, **sampling: object) -> GenerationSpec:
    return replace(spec, sampling=replace(spec.sampling, n=count, **sampling))  # type: ignore[arg-type]


class TestMany:
    async def test_completion_i_is_that_of_seed_plus_i(self, model: SteeredModel) -> None:
        spec = sampled(20, SteeringRule("one", 0.3), seed=7)
        completions = await model.generate_many(several(spec))
        assert [one.index for one in completions] == list(range(COUNT))
        assert [one.seed for one in completions] == [7, 8, 9, 10]
        await idle(model)
        for completion in completions:
            forget_pages(model)
            alone = await model.generate(replace(spec, sampling=replace(spec.sampling, seed=completion.seed)))
            assert (alone.tokens, alone.text, alone.acts) == (
                completion.tokens, completion.text, completion.acts,
            )  # fmt: skip
            assert alone.applied_steering == completion.applied_steering
            assert alone.usage.steered_rows == completion.usage.steered_rows
            assert completion.usage.generated_tokens == len(completion.tokens)

    async def test_seeds_may_reach_the_largest_and_not_pass_it(self, model: SteeredModel) -> None:
        spec = sampled(5, tokens=2)
        completions = await model.generate_many(several(spec, seed=2**63 - COUNT))
        assert completions[-1].seed == 2**63 - 1
        with pytest.raises(InvalidRequestError, match=r"sampling\.seed"):
            await model.generate_many(several(spec, seed=2**63 - COUNT + 1))

    async def test_seeds_that_were_not_given_follow_on_each_other(self, model: SteeredModel) -> None:
        completions = await model.generate_many(several(sampled(5, tokens=2), seed=None))
        first = completions[0].seed
        assert [one.seed for one in completions] == [first + n for n in range(COUNT)]

    async def test_they_have_one_request_id(self, model: SteeredModel) -> None:
        named = replace(several(greedy(3, tokens=1)), request_id="mine")
        first, second = await asyncio.gather(model.generate_many(named), model.generate_many(named))
        assert {one.request_id for one in (*first, *second)} == {"mine"}
        (own,) = {one.request_id for one in await model.generate_many(several(greedy(3, tokens=1)))}
        assert own.startswith("request-")

    async def test_one_is_one_of_many(self, model: SteeredModel) -> None:
        (completion,) = await model.generate_many(sampled(5))
        assert completion.ids == (await model.generate(sampled(5))).ids
        assert completion.index == 0

    async def test_generate_makes_one_and_says_so(self, model: SteeredModel) -> None:
        with pytest.raises(ValueError, match="the spec asks for 4 completions; `generate_many` makes them"):
            await model.generate(several(greedy(3)))

    async def test_when_one_was_cancelled_there_is_no_result(self, model: SteeredModel) -> None:
        spec = replace(several(sampled(20, tokens=200)), request_id="cancelled")
        task = asyncio.create_task(model.generate_many(spec))
        await busy(model)
        engine = model.engine
        for request_id in list(engine._running)[1:2]:  # type: ignore[attr-defined]
            engine.cancel(request_id)
        with pytest.raises(EngineStoppedError, match="the request was cancelled"):
            await task
        await idle(model)


class TestStream:
    async def test_deltas_and_completions_say_which_they_belong_to(self, model: SteeredModel) -> None:
        spec = several(sampled(20, SteeringRule("one", 0.3), tokens=15))
        texts, tokens, acts = ({n: [] for n in range(COUNT)} for _ in range(3))  # type: ignore[var-annotated]
        ended: dict[int, Completion] = {}
        async with aclosing(model.stream(spec)) as events:
            async for event in events:
                assert event.index not in ended
                if isinstance(event, StreamDelta):
                    texts[event.index].append(event.text)
                    tokens[event.index] += event.tokens
                    acts[event.index] += event.acts
                else:
                    ended[event.index] = event
        assert ended.keys() == set(range(COUNT))
        for index, completion in ended.items():
            assert completion.text == "".join(texts[index])
            assert completion.tokens == tuple(tokens[index])
            assert completion.acts == tuple(acts[index])
        forget_pages(model)
        assert tuple(ended[n].ids for n in range(COUNT)) == tuple(
            one.ids for one in await model.generate_many(spec)
        )

    async def test_a_completion_comes_as_soon_as_it_ends(self, model: SteeredModel) -> None:
        # The first token of each differs, and one of them is the stop.
        spec = sampled(20, tokens=40)
        first = (await model.generate_many(several(spec)))[2]
        stop = first.text[:1]
        events = [event async for event in model.stream(several(spec, stop=(stop,)))]
        at = next(n for n, event in enumerate(events) if isinstance(event, Completion) and event.index == 2)
        assert events[at].finish_reason is FinishReason.STOP_SEQUENCE  # type: ignore[union-attr]
        assert any(isinstance(event, StreamDelta) for event in events[at + 1 :])

    async def test_leaving_it_ends_all_of_them(self, model: SteeredModel) -> None:
        async with aclosing(model.stream(several(sampled(20, tokens=200)))) as events:
            await anext(events)
        await idle(model)
        assert model.engine._runs == {}  # type: ignore[attr-defined]


class TestSampling:
    """What a spec asks for reaches the sampler."""

    async def test_no_end_comes_before_min_tokens(self, model: SteeredModel) -> None:
        for least in (0, 1, 3):
            spec = greedy(5, SteeringRule("end"), min_tokens=least)
            completion = await model.generate(spec)
            assert len(completion.tokens) == least + 1
            assert completion.ids.index(EOS) == least
            assert completion.finish_reason is FinishReason.EOS

    async def test_no_stop_counts_before_min_tokens(self, model: SteeredModel) -> None:
        letter = model.loaded.tokenizer.decode([LETTER])
        spec = greedy(5, SteeringRule("letter"), stop=(letter * 2,), min_tokens=3)
        completion = await model.generate(spec)
        assert completion.text == letter * 3
        assert len(completion.tokens) == 5
        assert completion.finish_reason is FinishReason.STOP_SEQUENCE

    async def test_a_biased_token_is_drawn(self, model: SteeredModel) -> None:
        completion = await model.generate(greedy(5, logit_bias=((LETTER, 1000.0),), tokens=3))
        assert completion.ids == (LETTER,) * 3

    async def test_penalised_tokens_do_not_come_again(self, model: SteeredModel) -> None:
        for penalty in ({"presence_penalty": 100.0}, {"frequency_penalty": 100.0}):
            completion = await model.generate(greedy(5, tokens=60, **penalty))
            assert len(set(completion.ids)) == 60

    async def test_a_repetition_penalty_is_that_of_the_library(self, model: SteeredModel) -> None:
        spec = greedy(20, tokens=40, repetition_penalty=1.3)
        ids = torch.tensor([spec.prompt.ids])  # type: ignore[union-attr]
        reference = model.loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=1.3,
        )
        assert list((await model.generate(spec)).ids) == reference[0, 20:].tolist()

    async def test_alternatives_are_told_with_every_token(self, model: SteeredModel) -> None:
        completion = await model.generate(greedy(9, tokens=5, top_logprobs=3))
        for token in completion.tokens:
            assert len(token.top_logprobs) == 3
            assert (token.top_logprobs[0].id, token.top_logprobs[0].logprob) == (token.id, token.logprob)
            logprobs = [one.logprob for one in token.top_logprobs]
            assert logprobs == sorted(logprobs, reverse=True)
        plain = await model.generate(greedy(9, tokens=5))
        assert [(one.id, one.logprob, one.top_logprobs) for one in plain.tokens] == [
            (one.id, one.logprob, ()) for one in completion.tokens
        ]
