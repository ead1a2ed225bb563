"""The tokens of the engine: many requests, one batch, and each gets what it would get alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.model import SteeredModel
from steering_spec import (
    Chat,
    ChatMessage,
    GenerationSpec,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringRule,
)
from tests.support.engine import LETTER, forget_pages, greedy, prompt, sampled, together


class TestTokens:
    async def test_greedy_decoding_is_that_of_the_library(self, model: SteeredModel, folder: Path) -> None:
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        specs = [greedy(length, seed=length, tokens=20) for length in (1, 5, 16, 17, 40, 100)]
        for spec, completion in zip(specs, await together(model, specs), strict=True):
            ids = torch.tensor([spec.prompt.ids])  # type: ignore[union-attr]
            expected = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
            )
            assert list(completion.ids) == expected[0, ids.shape[1] :].tolist()

    async def test_log_probabilities_are_those_of_an_ordinary_forward(
        self, model: SteeredModel, folder: Path
    ) -> None:
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        spec = greedy(7)
        completion = await model.generate(spec)
        ids = torch.tensor([[*spec.prompt.ids, *completion.ids]])  # type: ignore[union-attr]
        with torch.no_grad():
            logprobs = reference(ids).logits[0, 6:-1].log_softmax(-1)
        expected = [float(logprobs[step, token.id]) for step, token in enumerate(completion.tokens)]
        assert [token.logprob for token in completion.tokens] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("make", [greedy, sampled])
    async def test_strength_zero_and_no_steering_are_bit_identical(
        self, make: Callable[..., GenerationSpec], model: SteeredModel
    ) -> None:
        # A prompt below one page: nothing is shared, so both are computed in the same shapes.
        plain = await model.generate(make(PAGE_TOKENS - 1))
        off = await model.generate(make(PAGE_TOKENS - 1, SteeringRule("one", 0.0)))
        assert off.tokens == plain.tokens
        assert off.acts == ()
        assert plain.applied_steering is None
        assert off.applied_steering is not None

    async def test_requests_beside_steered_ones_keep_their_exact_bits(self, model: SteeredModel) -> None:
        mine = greedy(9, seed=1)
        first, *_ = await together(model, [mine, greedy(9, SteeringRule("one", 2.0), seed=2)])
        second, *_ = await together(model, [mine, greedy(9, SteeringRule("two", -3.0), seed=2)])
        assert first.tokens == second.tokens

    async def test_steering_at_step_j_changes_token_j_and_nothing_before_it(
        self, model: SteeredModel
    ) -> None:
        plain = await model.generate(greedy(9))
        for step in (0, 1, 5):
            rule = SteeringRule("letter", selector=Selector.steps(step))
            steered = await model.generate(greedy(9, rule))
            assert steered.tokens[:step] == plain.tokens[:step]
            assert steered.ids[step] == LETTER != plain.ids[step]

    async def test_a_seeded_request_draws_the_same_tokens_alone_and_among_30_others(
        self, model: SteeredModel
    ) -> None:
        mine = sampled(11, SteeringRule("one", 0.5), seed=5, tokens=24)
        alone = await model.generate(mine)
        forget_pages(model)
        others = [sampled(3 + n, SteeringRule("two", n / 10), seed=n, tokens=10 + n) for n in range(30)]
        crowd = await together(model, [*others[:15], mine, *others[15:]])
        assert crowd[15].ids == alone.ids
        assert crowd[15].acts == alone.acts

    async def test_a_seed_that_was_not_given_is_told_and_repeats_the_completion(
        self, model: SteeredModel
    ) -> None:
        spec = replace(sampled(5), sampling=SamplingParams(max_tokens=16))
        first = await model.generate(spec)
        again = await model.generate(replace(spec, sampling=replace(spec.sampling, seed=first.seed)))
        assert again.ids == first.ids
        assert (await model.generate(spec)).seed != first.seed

    async def test_a_prompt_of_text_and_one_of_its_ids_are_the_same(self, model: SteeredModel) -> None:
        ids = tuple(model.loaded.tokenizer("Hello")["input_ids"])
        by_text = await model.generate(replace(greedy(1), prompt=PromptText("Hello")))
        by_ids = await model.generate(replace(greedy(1), prompt=PromptIds(ids)))
        assert by_text.tokens == by_ids.tokens
        assert by_text.usage.prompt_tokens == 5

    async def test_a_chat_is_rendered_by_the_models_template(self, model: SteeredModel) -> None:
        chat = Chat((ChatMessage("user", "Hi"), ChatMessage("assistant", "Yes")))
        closed = model.prompt_ids(chat)
        opened = model.prompt_ids(replace(chat, final_message_open=True))
        assert model.loaded.tokenizer.decode(closed) == "[user]Hi[end][assistant]Yes[assistant]"
        assert model.loaded.tokenizer.decode(opened) == "[user]Hi[end][assistant]Yes"


class TestUsage:
    async def test_the_first_token_comes_before_the_last_in_a_plain_request_too(
        self, model: SteeredModel
    ) -> None:
        usage = (await model.generate(greedy(9, tokens=60))).usage
        assert 0 < usage.first_token_seconds < usage.total_seconds / 2

    async def test_a_request_has_the_callers_id_or_one_of_its_own(self, model: SteeredModel) -> None:
        named = replace(greedy(3, tokens=1), request_id="mine")
        first, second = await together(model, [named, named])
        assert first.request_id == second.request_id == "mine"
        assert (await model.generate(greedy(3, tokens=1))).request_id.startswith("request-")


class TestBannedIds:
    async def one_chunk(
        self, model: SteeredModel, temperature: float, banned: tuple[int, ...], top_k: int = 0
    ) -> list[tuple[int, float]]:
        sampling = Sampling(temperature, 1.0, top_k, 3, seed=1)
        request = EngineRequest("banned", prompt(6).ids, sampling, banned_first_ids=banned)
        (chunk,) = [chunk async for chunk in model.engine.submit(request)]
        return [(token.id, token.logprob) for token in chunk.tokens]

    async def test_the_first_token_is_the_best_of_the_others(self, model: SteeredModel) -> None:
        (best, logprob), *_ = await self.one_chunk(model, 0.0, ())
        (second, renormalised), *_ = await self.one_chunk(model, 0.0, (best,))
        assert second != best
        with torch.no_grad():
            ids = torch.tensor([prompt(6).ids])
            probabilities = model.loaded.model(ids, use_cache=False).logits[0, -1].double().softmax(-1)
        expected = probabilities[second] / (1 - math.exp(logprob))
        assert math.exp(renormalised) == pytest.approx(float(expected), rel=1e-5)

    async def test_filters_that_leave_nothing_else_give_way(self, model: SteeredModel) -> None:
        (best, _), *_ = await self.one_chunk(model, 1.0, (), top_k=1)
        (drawn, logprob), *_ = await self.one_chunk(model, 1.0, (best,), top_k=1)
        assert drawn != best
        assert logprob < 0  # one of many: of a single one it would be 0
        assert (drawn, logprob) == (await self.one_chunk(model, 1.0, (best,)))[0]

    async def test_only_the_first_token_is_held_back(self, model: SteeredModel) -> None:
        free = await self.one_chunk(model, 1.0, ())
        later = [token for token, _ in free[1:]]
        assert (
            await self.one_chunk(model, 1.0, (LETTER + 1,) if free[0][0] != LETTER + 1 else (LETTER,))
            is not None
        )
        held = await self.one_chunk(model, 1.0, tuple(set(range(258)) - {free[0][0]}))
        assert [token for token, _ in held] == [free[0][0], *later]
        assert held[0][1] == 0.0
