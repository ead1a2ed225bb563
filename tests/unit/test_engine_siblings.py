"""Completions of one prompt: it is computed once, and each of them is what it would be alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import ContextTrigger, Selector, SteeringRule
from tests.support.engine import (
    engine_request,
    engine_result,
    forget_pages,
    greedy,
    idle,
    ids_of,
    processor,
    running,
    sampled,
)
from tests.support.models import save_tiny_model
from tests.support.siblings import COUNT, one_by_one, requests_of, siblings, told
from tests.support.vectors import random_vector

LENGTH = 50
STEERINGS: dict[str, tuple[SteeringRule, ...]] = {
    "unsteered": (),
    "every step": (SteeringRule("one", 0.4),),
    "prompt": (SteeringRule("one", 0.4, selector=Selector.prompt_window(0, 1)),),
    "last prompt row": (SteeringRule("two", selector=Selector.prompt_positions(-1)),),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], SteeredModel]]:
    """Engines of models with full attention, sliding windows, and both."""
    kept = {}
    opened = []

    def model(family: str) -> SteeredModel:
        if family not in kept:
            folder = save_tiny_model(tmp_path_factory.mktemp(family) / "tiny", family)
            context = running(folder, cache_tokens=4096, max_batch_tokens=64, max_concurrent_requests=32)
            opened.append(context)
            kept[family] = context.__enter__()
        return kept[family]

    yield model
    for context in opened:
        context.__exit__(None, None, None)


class TestEqual:
    @pytest.mark.parametrize("steering", STEERINGS)
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
    async def test_each_is_to_the_bit_what_it_is_alone(
        self, family: str, steering: str, load: Callable[[str], SteeredModel]
    ) -> None:
        model = load(family)
        assert processor(model).model_runner.tile
        for length in (2, PAGE_TOKENS, PAGE_TOKENS + 1, LENGTH, 100):  # one page, whole pages, two chunks
            requests = requests_of(model, sampled(length, *STEERINGS[steering]), count=4)
            alone = await one_by_one(model, requests)
            assert len({chunk.text for chunk in alone}) > 1
            assert told(await siblings(model, requests)) == told(alone)
        await idle(model)
        forget_pages(model)
        assert model.stats().free_cache_tokens >= 4096

    async def test_of_a_prompt_with_one_token_too(self, model: SteeredModel) -> None:
        requests = requests_of(model, sampled(1))
        alone = await one_by_one(model, requests)
        assert told(await siblings(model, requests)) == told(alone)

    async def test_triggers_penalties_and_alternatives_are_each_ones_own(self, model: SteeredModel) -> None:
        spec = sampled(LENGTH, tokens=20)
        plain = await siblings(model, requests_of(model, spec))
        context = ids_of(plain[3])[5:7]
        vector = random_vector(model.loaded, "own", [1], seed=6, contexts=[context], min_match=2)
        model.vectors.load("own", encode_vector(vector))
        steered = sampled(LENGTH, SteeringRule("own", trigger=ContextTrigger(hold_steps=2)), tokens=20)
        sampling = replace(
            steered.sampling, repetition_penalty=1.2, frequency_penalty=0.1, top_logprobs=2, min_tokens=3
        )
        requests = requests_of(model, replace(steered, sampling=sampling))
        alone = await one_by_one(model, requests)
        assert told(await siblings(model, requests)) == told(alone)

    async def test_in_a_crowd_and_streamed_too(self, model: SteeredModel) -> None:
        requests = requests_of(model, sampled(LENGTH, SteeringRule("one", 0.3), tokens=20))
        alone = await one_by_one(model, requests)
        others = [engine_request(model, sampled(20 + n, seed=n, tokens=30), f"other {n}") for n in range(12)]
        streamed = [replace(request, streaming=True) for request in requests]
        tokens: dict[int, list[object]] = {n: [] for n in range(COUNT)}

        async def read() -> None:
            async for index, chunk in model.engine.submit_many(streamed):
                tokens[index] += chunk.tokens

        await asyncio.gather(read(), *(engine_result(model, other) for other in others))
        assert [tuple(tokens[n]) for n in range(COUNT)] == [chunk.tokens for chunk in alone]

    async def test_more_of_them_than_may_run_at_a_time(self, own: SteeredModel) -> None:
        requests = requests_of(own, sampled(20), count=20)
        alone = await one_by_one(own, requests)
        assert told(await siblings(own, requests)) == told(alone)


class TestRows:
    @pytest.mark.parametrize("steering", STEERINGS)
    async def test_the_prompt_is_computed_once(
        self, steering: str, model: SteeredModel, computed_rows: list[int]
    ) -> None:
        await idle(model)
        forget_pages(model)
        computed_rows.clear()
        await siblings(model, requests_of(model, sampled(LENGTH, *STEERINGS[steering], tokens=3)))
        assert computed_rows == [LENGTH - 1, COUNT, COUNT, COUNT]

    @pytest.mark.parametrize("family", ["mistral", "gemma3"])
    async def test_so_it_is_where_no_pages_are_shared(
        self, family: str, load: Callable[[str], SteeredModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(family)
        runner = processor(model).model_runner
        rows: list[int] = []
        compute_batch = runner.compute_batch

        def count(*args: object) -> None:
            rows.append(sum(one.query_length for one in runner.inputs_and_outputs.requests_in_batch))
            compute_batch(*args)

        monkeypatch.setattr(runner, "compute_batch", count)
        await siblings(model, requests_of(model, sampled(LENGTH, tokens=3)))
        assert rows == [LENGTH - 1, COUNT, COUNT, COUNT]

    async def test_pages_that_are_there_are_not_computed_again(
        self, model: SteeredModel, computed_rows: list[int]
    ) -> None:
        # All rows but the last are in pages that are there; the row of the last page stays to be computed again,
        # because the library copies a request after a forward of its prompt.
        length = 3 * PAGE_TOKENS + 1
        await idle(model)
        forget_pages(model)
        await engine_result(model, engine_request(model, sampled(length, tokens=2), "before"))
        computed_rows.clear()
        await siblings(model, requests_of(model, sampled(length, tokens=2)))
        assert computed_rows == [PAGE_TOKENS, COUNT, COUNT]


class TestRefusing:
    @pytest.mark.parametrize(
        "change",
        [{"prompt_ids": (2, 4)}, {"banned_first_ids": (2,)}, {"plan": None}, {"sampling": None}],
        ids=str,
    )
    async def test_completions_of_different_requests_are_refused(
        self, change: dict[str, object], model: SteeredModel
    ) -> None:
        first, second = requests_of(model, greedy(5, SteeringRule("one")), count=2)
        if "sampling" in change:
            change = {"sampling": replace(second.sampling, max_tokens=5)}
        with pytest.raises(ValueError, match="may differ in ids, seeds"):
            await anext(model.engine.submit_many([first, replace(second, **change)]))  # type: ignore[arg-type]

    async def test_there_has_to_be_one(self, model: SteeredModel) -> None:
        with pytest.raises(ValueError, match="there is no request; expected at least one"):
            await anext(model.engine.submit_many([]))

    async def test_an_id_cannot_be_used_twice(self, model: SteeredModel) -> None:
        first, *_ = requests_of(model, greedy(5))
        with pytest.raises(ValueError, match="request id 'sibling 0' is already running"):
            await anext(model.engine.submit_many([first, first]))
