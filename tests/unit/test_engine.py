"""The engine: many requests, one batch, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from steering_engine.engine.base import EngineChunk, EngineRequest, Sampling
from steering_engine.engine.limits import PAGE_TOKENS, EngineLimits
from steering_engine.errors import EngineStoppedError, ModelError, NotFiniteError
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    Chat,
    ChatMessage,
    Clause,
    Completion,
    ContextTrigger,
    FinishReason,
    GenerationSpec,
    InvalidRequestError,
    Phase,
    Positions,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    StreamDelta,
    TriggerKind,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector

EOS = 1
LETTER = 50  # some token that is a printable character


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("engine") / "tiny")


@contextmanager
def running(folder: Path, **limits: int) -> Iterator[SteeredModel]:
    """A model with the vectors of these tests."""
    model = SteeredModel.load(str(folder), device="cpu", dtype="float32", limits=EngineLimits(**limits))
    loaded = model.loaded
    for vector in (
        random_vector(loaded, "one", [0, 1, 2], seed=1),
        random_vector(loaded, "two", [1], seed=2),
        random_vector(loaded, "endless", [0], seed=4, strength=3e38),
        towards_token(loaded, "end", EOS),
        towards_token(loaded, "letter", LETTER),
    ):
        model.vectors.load(vector.metadata.name, encode_vector(vector))
    try:
        yield model
    finally:
        # In a thread, because some tests are inside a running loop here.
        thread = threading.Thread(target=lambda: asyncio.run(model.close()))
        thread.start()
        thread.join()


def towards_token(loaded: LoadedModel, name: str, token_id: int) -> SteeringVector:
    """A vector that makes a token the most likely one: the token's row of the unembedding, at the last block."""
    block = loaded.block_count - 1
    metadata = random_vector(loaded, name, [block], strength=1000.0).metadata
    row = loaded.model.lm_head.weight[token_id]
    return SteeringVector(metadata, {block: row / row.norm()})


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[SteeredModel]:
    """The engine that most tests share; they leave no request on it."""
    with running(folder, cache_tokens=4096, max_batch_tokens=64, max_concurrent_requests=32) as model:
        yield model


@pytest.fixture(scope="module")
def cramped(folder: Path) -> Iterator[SteeredModel]:
    """An engine whose cache holds ten pages, of which a request of these tests needs up to five."""
    with running(
        folder, cache_tokens=10 * PAGE_TOKENS, max_batch_tokens=32, max_concurrent_requests=8
    ) as model:
        yield model


@pytest.fixture
def own(folder: Path) -> Iterator[SteeredModel]:
    """An engine for one test alone, which may break it."""
    with running(folder, cache_tokens=1024, max_batch_tokens=64, max_concurrent_requests=8) as model:
        yield model


def prompt(length: int, seed: int = 0) -> PromptIds:
    generator = torch.Generator().manual_seed(seed)
    return PromptIds(tuple(torch.randint(2, 258, (length,), generator=generator).tolist()))


def greedy(
    length: int, *rules: SteeringRule, seed: int = 0, tokens: int = 12, **sampling: Any
) -> GenerationSpec:
    return GenerationSpec(
        prompt(length, seed),
        SamplingParams(temperature=0, max_tokens=tokens, **sampling),
        SteeringSpec(rules) if rules else None,
        steering_trace=True,
    )


def sampled(length: int, *rules: SteeringRule, seed: int = 0, tokens: int = 12) -> GenerationSpec:
    spec = greedy(length, *rules, seed=seed, tokens=tokens)
    return replace(spec, sampling=SamplingParams(temperature=1.0, max_tokens=tokens, seed=seed))


async def together(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[Completion]:
    return list(await asyncio.gather(*(model.generate(spec) for spec in specs)))


class Pieces:
    """An `until` that has seen enough after so many pieces of text."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pieces: list[str] = []

    def __call__(self, piece: str) -> bool:
        self.pieces.append(piece)
        return len(self.pieces) == self.most


def engine_request(model: SteeredModel, spec: GenerationSpec, request_id: str) -> EngineRequest:
    """The engine's request for a spec, through end-of-sequence tokens."""
    request = model._prepare(spec, streaming=False)
    return replace(request, request_id=request_id, sampling=replace(request.sampling, stop_at_eos=False))


async def engine_result(model: SteeredModel, request: EngineRequest) -> EngineChunk:
    """The one chunk of a request that is not streamed."""
    (chunk,) = [chunk async for chunk in model.engine.submit(request)]
    return chunk


def ids_of(chunk: EngineChunk) -> list[int]:
    return [token.id for token in chunk.tokens]


def processor(model: SteeredModel) -> Any:
    return model.engine._manager.batch_processor  # type: ignore[attr-defined]


def forget_pages(model: SteeredModel) -> None:
    """Empties the cache of pages that are kept for sharing; for an idle engine."""
    processor(model).cache.evict_cached_blocks()


async def idle(model: SteeredModel) -> None:
    for _ in range(1000):
        stats = model.stats()
        if not stats.active_requests and not stats.waiting_requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine did not come to rest")


async def busy(model: SteeredModel) -> None:
    for _ in range(10_000):
        if model.stats().active_requests:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the engine did not begin")


@pytest.fixture
def computed_rows(model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward."""
    counts: list[int] = []
    runner = processor(model).model_runner
    compute_batch = runner.compute_batch

    def count(*args: Any) -> None:
        counts.append(sum(one.query_length for one in runner.inputs_and_outputs.requests_in_batch))
        compute_batch(*args)

    monkeypatch.setattr(runner, "compute_batch", count)
    return counts


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
        spec = greedy(5, SteeringRule("end"))
        request = replace(model._prepare(spec, streaming=False), request_id="on and on")
        request = replace(request, sampling=replace(request.sampling, stop_at_eos=False, max_tokens=4))
        (chunk,) = [chunk async for chunk in model.engine.submit(request)]
        assert [token.id for token in chunk.tokens] == [EOS] * 4
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
        request = cramped._prepare(spec, streaming=False)
        assert request.sampling.max_tokens == facts.max_context_tokens - 20


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
            "steering.rules[0].selector.include[0].positions[0]"
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
        "change",
        [
            {"prompt_ids": ()},
            {"prompt_ids": (2, 258)},
            {"prompt_ids": (-1,)},
            {"banned_first_ids": (258,)},
            {"prompt_ids": (2,) * 250, "sampling": Sampling(0, 1, 0, 7, 0)},
            {"sampling": Sampling(0, 1, 0, 0, 0)},
        ],
        ids=["no ids", "id too large", "negative id", "banned id too large", "too long", "no tokens"],
    )
    async def test_a_request_that_would_end_the_engine_is_refused_by_it(
        self, change: dict[str, Any], model: SteeredModel
    ) -> None:
        sound = EngineRequest("bad", (2, 3), Sampling(0.0, 1.0, 0, 4, 0))
        with pytest.raises(ValueError, match=r"ids must be in \[0, 258\)|at most 256 fit"):
            await anext(model.engine.submit(replace(sound, **change)))
        assert (await model.generate(greedy(3))).finish_reason is FinishReason.LENGTH

    async def test_an_id_that_is_running_cannot_be_used_twice(self, model: SteeredModel) -> None:
        request = EngineRequest("twin", (2, 3), Sampling(0.0, 1.0, 0, 100, 0), streaming=True)
        async with aclosing(model.engine.submit(request)) as chunks:
            await anext(chunks)
            with pytest.raises(ValueError, match="request id 'twin' is already running"):
                await anext(model.engine.submit(request))
        await idle(model)


async def collect(model: SteeredModel, spec: GenerationSpec) -> tuple[list[StreamDelta], Completion]:
    deltas: list[StreamDelta] = []
    async with aclosing(model.stream(spec)) as events:
        async for event in events:
            if isinstance(event, Completion):
                return deltas, event
            deltas.append(event)
    raise AssertionError("the stream ended without a completion")


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


class TestSharing:
    """Whole pages of prompts are computed once, and never for a request that steers them otherwise."""

    LENGTH = 50  # three whole pages and two rows

    STEERED = (
        SteeringRule("one", 0.4),
        SteeringRule("one", -0.4),
        SteeringRule("two", 0.4),
        SteeringRule("one", 0.4, layers=(1,)),
        SteeringRule("one", 0.4, selector=Selector.prompt_positions(20)),
        SteeringRule("one", 0.4, selector=Selector.prompt_window(0)),
    )

    @pytest.mark.parametrize("second", [None, *STEERED])
    @pytest.mark.parametrize("first", [None, STEERED[0], STEERED[4]])
    async def test_warm_equals_cold(
        self, first: SteeringRule | None, second: SteeringRule | None, model: SteeredModel
    ) -> None:
        specs = [greedy(self.LENGTH, *([rule] if rule else []), tokens=40) for rule in (first, second)]
        await idle(model)
        forget_pages(model)
        cold = await model.generate(specs[1])
        forget_pages(model)
        await model.generate(specs[0])
        warm = await model.generate(specs[1])
        assert warm.ids == cold.ids
        assert warm.acts == cold.acts
        assert warm.usage.steered_rows == cold.usage.steered_rows
        assert [token.logprob for token in warm.tokens] == pytest.approx(
            [token.logprob for token in cold.tokens], abs=3e-6
        )

    @pytest.mark.parametrize(
        ("first", "second", "rows"),
        [
            (None, None, 2),
            (None, SteeringRule("one"), 2),  # steered from its last prompt row on, which is in no whole page
            (SteeringRule("one"), None, 2),
            (SteeringRule("one"), SteeringRule("one", 2.0), 2),
            (SteeringRule("one"), SteeringRule("two"), 2),
            (None, SteeringRule("one", selector=Selector.prompt_positions(20)), 50 - 16),
            (None, SteeringRule("one", selector=Selector.prompt_positions(16)), 50 - 16),
            (None, SteeringRule("one", selector=Selector.prompt_positions(15)), 50),
            (SteeringRule("one", selector=Selector.prompt_positions(20)), None, 50 - 16),
            (
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                2,
            ),
            (
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                SteeringRule("one", 2.0, selector=Selector.prompt_positions(20)),
                50 - 16,
            ),
            (None, SteeringRule("one", 0.0), 2),
        ],
    )
    async def test_pages_before_the_first_steered_row_are_shared_and_no_others(
        self,
        first: SteeringRule | None,
        second: SteeringRule | None,
        rows: int,
        model: SteeredModel,
        computed_rows: list[int],
    ) -> None:
        await idle(model)
        forget_pages(model)
        await model.generate(greedy(self.LENGTH, *([first] if first else []), tokens=2))
        assert sum(computed_rows) == self.LENGTH + 1
        computed_rows.clear()
        await model.generate(greedy(self.LENGTH, *([second] if second else []), tokens=2))
        assert sum(computed_rows) == rows + 1

    SHORT = 10
    # Every token is the letter, whatever else steers: so requests that are steered otherwise have equal ids.
    LETTERS = (SteeringRule("one"), SteeringRule("letter", 0.02))

    async def test_a_steered_request_never_adopts_pages_of_equal_ids_while_it_generates(
        self, model: SteeredModel
    ) -> None:
        steered = greedy(self.SHORT, *self.LETTERS, tokens=60)
        await idle(model)
        forget_pages(model)
        cold = await model.generate(steered)
        assert set(cold.ids) == {LETTER}
        forget_pages(model)
        unsteered = PromptIds((*prompt(self.SHORT).ids, *[LETTER] * 60))
        await model.generate(replace(greedy(1, tokens=2), prompt=unsteered))
        warm = await model.generate(steered)
        assert [token.logprob for token in warm.tokens] == pytest.approx(
            [token.logprob for token in cold.tokens], abs=3e-6
        )

    async def test_an_unsteered_request_never_shares_what_a_steered_one_generated(
        self, model: SteeredModel, computed_rows: list[int]
    ) -> None:
        await idle(model)
        forget_pages(model)
        await model.generate(greedy(self.SHORT, *self.LETTERS, tokens=60))
        computed_rows.clear()
        unsteered = PromptIds((*prompt(self.SHORT).ids, *[LETTER] * 60))
        await model.generate(replace(greedy(1, tokens=1), prompt=unsteered))
        assert sum(computed_rows) == self.SHORT + 60

    async def test_the_ledger_has_one_page_for_equal_rows_and_two_for_different_ones(
        self, model: SteeredModel
    ) -> None:
        ledger = next(iter(processor(model).cache.cache_allocators.values())).ledger
        await idle(model)
        forget_pages(model)
        everywhere = SteeringRule("one", selector=Selector.prompt_window(0))
        for rule, pages in ((None, 3), (None, 3), (everywhere, 6), (everywhere, 6)):
            await model.generate(greedy(self.LENGTH, *([rule] if rule else []), tokens=2))
            assert len(ledger.hash_to_block) == pages


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
        assert completion.acts == (SteeringAct(0, (1,), step=6, trigger=TriggerKind.CONTEXT, score=2),)
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
        self, model: SteeredModel, temperature: float, banned: tuple[int, ...]
    ) -> list[tuple[int, float]]:
        sampling = Sampling(temperature, 1.0, 0, 3, seed=1)
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


class TestNotFinite:
    async def test_only_the_request_without_finite_logits_ends(self, model: SteeredModel) -> None:
        # The longest request comes last, so the padding of the first one reaches over the keys of the second.
        mine = [greedy(length, seed=length, tokens=20) for length in (8, 12, 90)]
        alone = [await model.generate(spec) for spec in mine]
        spoilt = greedy(9, SteeringRule("endless", 1000.0, selector=Selector.steps(6)), tokens=20)
        results = await asyncio.gather(
            *(model.generate(spec) for spec in [mine[0], spoilt, *mine[1:]]), return_exceptions=True
        )
        error = results.pop(1)
        assert isinstance(error, NotFiniteError)
        assert str(error) == "the logits of token 6 are not finite; its steering is too strong"
        assert [getattr(result, "ids", result) for result in results] == [
            completion.ids for completion in alone
        ]

    async def test_its_pages_spoil_nobody_after_it(self, cramped: SteeredModel, model: SteeredModel) -> None:
        rule = SteeringRule("endless", 1000.0, selector=Selector.prompt_window(0))
        for seed in range(4):
            with pytest.raises(NotFiniteError):
                await cramped.generate(greedy(60, rule, seed=seed))
        await idle(cramped)
        specs = [greedy(30, seed=seed, tokens=20) for seed in range(3)]
        got, expected = await together(cramped, specs), await together(model, specs)
        assert [completion.ids for completion in got] == [completion.ids for completion in expected]


class TestOutside:
    async def test_a_forward_beside_the_running_engine_is_not_steered(self, model: SteeredModel) -> None:
        ids = torch.tensor([prompt(9).ids])

        def forward() -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = model.loaded.model(ids, use_cache=False).logits
            return logits

        expected = forward()
        task = asyncio.create_task(model.generate(greedy(5, SteeringRule("one", 3.0), tokens=200)))
        await busy(model)
        seen = 0
        while not task.done():
            assert torch.equal(await asyncio.to_thread(forward), expected)
            seen += 1
        assert seen > 3


class TestStopping:
    async def test_close_ends_running_and_waiting_requests(self, own: SteeredModel) -> None:
        tasks = [asyncio.create_task(own.generate(greedy(9, seed=n, tokens=240))) for n in range(12)]
        await busy(own)
        await own.close()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(result, EngineStoppedError) for result in results)
        assert {str(result) for result in results} == {"the engine was closed"}

    async def test_after_close_nothing_is_accepted_and_closing_again_is_fine(self, own: SteeredModel) -> None:
        await asyncio.gather(own.close(), own.close())
        await own.close()
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(own.generate(greedy(9)), 10)
        assert own.stats().active_requests == 0

    async def test_close_gives_the_model_back_as_it_was(self, folder: Path) -> None:
        with running(folder, cache_tokens=256) as model:
            blocks = model.loaded.model.model.layers
            assert all(block._forward_hooks for block in blocks)
            await model.close()
        assert not any(block._forward_hooks for block in blocks)
        assert model.loaded.model.config._attn_implementation == "sdpa"

    async def test_a_forward_that_raises_ends_every_request_and_lets_nobody_wait(
        self, own: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0
        head = own.loaded.model.lm_head
        forward = head.forward

        def fail_later(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 5:
                raise RuntimeError("the device is lost")
            return forward(*args)

        monkeypatch.setattr(head, "forward", fail_later)
        tasks = [asyncio.create_task(own.generate(greedy(9, seed=n, tokens=50))) for n in range(12)]
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert {repr(result) for result in results} == {
            "EngineStoppedError('the engine failed: the device is lost')"
        }
        # Which of the two it says depends on whether the engine's thread has ended by now.
        with pytest.raises(EngineStoppedError, match=r"died with a fatal error|thread is stopping"):
            await asyncio.wait_for(own.generate(greedy(9)), 10)

    async def test_requests_submitted_while_it_stops_never_wait_for_ever(self, folder: Path) -> None:
        for _ in range(3):
            with running(folder, cache_tokens=256) as model:

                async def submit_on_and_on(model: SteeredModel = model) -> None:
                    with suppress(EngineStoppedError):
                        while True:
                            await model.generate(greedy(3, tokens=1))

                workers = [asyncio.create_task(submit_on_and_on()) for _ in range(8)]
                await asyncio.sleep(0.05)
                await model.close()
                await asyncio.wait_for(asyncio.gather(*workers), 10)


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"cache_tokens": 0}, "cache_tokens is 0; expected at least 1"),
            ({"max_batch_tokens": 0}, "max_batch_tokens is 0; expected at least 1"),
            ({"max_concurrent_requests": -1}, "max_concurrent_requests is -1; expected at least 1"),
            ({"default_max_tokens": 0}, "default_max_tokens is 0; expected at least 1"),
            ({"max_context_tokens": -1}, r"max_context_tokens is -1; expected 0 \(automatic\) or more"),
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


def test_a_request_that_nobody_waits_for_any_more_does_not_stop_the_engine(folder: Path) -> None:
    with running(folder, cache_tokens=256) as model:
        loop = asyncio.new_event_loop()
        task = loop.create_task(model.generate(greedy(9, tokens=200)))
        loop.run_until_complete(asyncio.sleep(0.05))
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()
        deadline = time.monotonic() + 10
        while model.stats().active_requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(asyncio.run(model.generate(greedy(9, tokens=3))).tokens) == 3
