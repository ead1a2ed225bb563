"""What an engine refuses, and the limits that it keeps to."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.engine.limits import EngineLimits
from steering_engine.errors import ModelError
from steering_engine.model import SteeredModel
from steering_spec import (
    Chat,
    ChatMessage,
    FinishReason,
    GenerationSpec,
    InvalidRequestError,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
)
from tests.support.engine import (
    engine_request,
    engine_result,
    forget_pages,
    greedy,
    idle,
    processor,
    running,
    together,
)


class TestRefusing:
    async def test_everything_wrong_with_a_request_is_told_before_it_runs(self, model: SteeredModel) -> None:
        spec = GenerationSpec(
            PromptIds((2, 999)), SamplingParams(top_p=0), SteeringSpec((SteeringRule("absent"),))
        )
        with pytest.raises(InvalidRequestError) as caught:
            await model.generate(spec)
        assert [one.field for one in caught.value.violations] == [
            "tokens.ids[1]", "sampling.top_p", "steering.rules[0].vector",
        ]  # fmt: skip

    async def test_what_only_the_tokenized_prompt_shows_is_told_too(self, model: SteeredModel) -> None:
        rule = SteeringRule("one", selector=Selector.prompt_positions(5))
        with pytest.raises(InvalidRequestError) as caught:
            await model.generate(replace(greedy(1, rule), prompt=PromptText("Hello")))
        assert [one.field for one in caught.value.violations] == [
            "steering.rules[0].selector.include[0].positions.positions[0]"
        ]

    async def test_a_template_that_refuses_the_messages_is_a_fault_of_the_messages(
        self, model: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            model.loaded.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}"
        )
        with pytest.raises(InvalidRequestError, match=r"chat\.messages: .*roles must alternate"):
            await model.generate(GenerationSpec(Chat((ChatMessage("user", "x"),))))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt_ids": ()}, r"all ids must be in \[0, 258\)"),
            ({"prompt_ids": (2, 258)}, r"all ids must be in \[0, 258\)"),
            ({"prompt_ids": (-1,)}, r"all ids must be in \[0, 258\)"),
            ({"banned_first_ids": (258,)}, r"all ids must be in \[0, 258\)"),
            ({"logit_bias": ((258, 1.0),)}, r"all ids must be in \[0, 258\)"),
            ({"prompt_ids": (2,) * 250, "max_tokens": 7}, "at most 256 fit"),
            ({"max_tokens": 0}, "at most 256 fit"),
            ({"top_logprobs": -1}, "top_logprobs is -1; expected 0 or more"),
            ({"seed": 2**63}, r"seeds must be in \[-9223372036854775808, 9223372036854775808\)"),
        ],
        ids=str,
    )
    async def test_a_request_that_would_end_the_engine_is_refused_by_it(
        self, change: dict[str, Any], message: str, model: SteeredModel
    ) -> None:
        sound = EngineRequest("bad", (2, 3), Sampling(0.0, 1.0, 0, 4, 0))
        of_request = {name: change[name] for name in change if name in ("prompt_ids", "banned_first_ids")}
        of_sampling = {name: change[name] for name in change if name not in of_request}
        spoilt = replace(sound, **of_request, sampling=replace(sound.sampling, **of_sampling))
        with pytest.raises(ValueError, match=message):
            await anext(model.engine.submit(spoilt))
        assert (await model.generate(greedy(3))).finish_reason is FinishReason.LENGTH

    async def test_more_alternatives_than_there_are_tokens_are_all_of_them(self, model: SteeredModel) -> None:
        request = engine_request(model, greedy(3, tokens=1), "all")
        request = replace(request, sampling=replace(request.sampling, top_logprobs=1000))
        (token,) = (await engine_result(model, request)).tokens
        assert len(token.top_logprobs) == model.info.facts.vocab_size

    async def test_an_id_that_is_running_cannot_be_used_twice(self, model: SteeredModel) -> None:
        request = EngineRequest("twin", (2, 3), Sampling(0.0, 1.0, 0, 100, 0), streaming=True)
        async with aclosing(model.engine.submit(request)) as chunks:
            await anext(chunks)
            with pytest.raises(ValueError, match="request id 'twin' is already running"):
                await anext(model.engine.submit(request))
        await idle(model)


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"cache_tokens": 0}, "cache_tokens is 0; expected at least 1"),
            ({"max_batch_tokens": 0}, "max_batch_tokens is 0; expected at least 1"),
            ({"max_concurrent_requests": -1}, "max_concurrent_requests is -1; expected at least 1"),
            ({"default_max_tokens": 0}, "default_max_tokens is 0; expected at least 1"),
            ({"max_context_tokens": -1}, r"max_context_tokens is -1; expected 0 \(automatic\) or at least 4"),
            ({"max_context_tokens": 3}, r"max_context_tokens is 3; expected 0 \(automatic\) or at least 4"),
            ({"max_context_tokens": 65, "cache_tokens": 64}, "one request would not fit into the cache"),
        ],
    )
    def test_limits_that_make_no_sense_are_refused(self, limits: dict[str, int], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            EngineLimits(**limits)

    @pytest.mark.parametrize(
        ("limits", "model_context", "expected"),
        [
            (EngineLimits(), 256, 256),
            (EngineLimits(max_context_tokens=100), 256, 100),
            (EngineLimits(max_context_tokens=1000), 256, 256),
            (EngineLimits(cache_tokens=128), 256, 112),
            (EngineLimits(cache_tokens=64), 256, 48),
        ],
    )
    def test_the_context_is_bounded_by_the_limit_the_model_and_the_cache(
        self, limits: EngineLimits, model_context: int, expected: int
    ) -> None:
        assert limits.context_tokens(model_context) == expected

    def test_a_cache_too_small_for_the_trial_at_load_is_refused(self) -> None:
        with pytest.raises(ModelError, match="cache_tokens is 63; expected at least 64"):
            EngineLimits(cache_tokens=63)

    async def test_long_prompts_are_computed_in_chunks(
        self, model: SteeredModel, computed_rows: list[int]
    ) -> None:
        await idle(model)
        forget_pages(model)
        await model.generate(greedy(200, tokens=1))
        assert computed_rows == [64, 64, 64, 8]

    async def test_no_more_requests_than_allowed_are_in_a_batch(
        self, own: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        runner = processor(own).model_runner
        compute_batch = runner.compute_batch
        monkeypatch.setattr(
            runner,
            "compute_batch",
            lambda *args: (
                sizes.append(len(runner.inputs_and_outputs.requests_in_batch)),
                compute_batch(*args),
            ),
        )
        await together(own, [greedy(3, seed=n, tokens=5) for n in range(20)])
        assert max(sizes) == 8

    async def test_a_tiny_budget_of_rows_still_serves_everyone(
        self, folder: Path, model: SteeredModel
    ) -> None:
        specs = [greedy(20, SteeringRule("one"), seed=n, tokens=6) for n in range(4)]
        with running(folder, cache_tokens=256, max_batch_tokens=3, max_concurrent_requests=8) as narrow:
            got = await together(narrow, specs)
            await narrow.close()
        expected = await together(model, specs)
        assert [completion.ids for completion in got] == [completion.ids for completion in expected]
