"""On a CPU in float32 a seeded request has the same tokens and the same log-probabilities, to the bit, in any batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from steering_engine.alias import resolve_model
from steering_engine.engine import stability
from steering_engine.engine.limits import PAGE_TOKENS, EngineLimits
from steering_engine.engine.stability import AlignedActivations, _in_pieces
from steering_engine.engine.stable_attention import Segments, arrange, attend
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    GenerationSpec,
    PromptIds,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
    Token,
)
from tests.support.engine import processor
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector

FAMILIES = ["demo", "llama", "qwen3", "mistral", "gpt2", "mixtral"]
MOST_PROMPT = 90
MOST_TOKENS = 12
# What one request needs, so that a cache may be so small that requests preempt each other.
LEAST_CACHE = -(-(MOST_PROMPT + MOST_TOKENS) // PAGE_TOKENS) * PAGE_TOKENS + PAGE_TOKENS


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """The bundled model, and tiny ones by their family."""

    @cache
    def model(family: str) -> LoadedModel:
        if family == "demo":
            return load_model(resolve_model("demo"), "cpu")
        return load_model(str(save_tiny_model(tmp_path_factory.mktemp(family), family)), "cpu")

    return model


def engine(loaded: LoadedModel, **limits: Any) -> SteeredModel:
    model = SteeredModel(loaded, "tiny", EngineLimits(deterministic=True, **limits))
    vector = random_vector(loaded, "v", list(range(loaded.block_count)), strength=2.0)
    model.vectors.load("v", encode_vector(vector))
    return model


def tile_of(model: SteeredModel) -> int:
    tile: int = model.engine._manager.batch_processor.model_runner.tile  # type: ignore[attr-defined]
    return tile


async def alone(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[tuple[Token, ...]]:
    """Every request by itself, with nothing in the cache."""
    found = []
    for spec in specs:
        found.append((await model.generate(spec)).tokens)
        model.engine._manager.batch_processor.cache.evict_cached_blocks()  # type: ignore[attr-defined]
    return found


async def together(
    model: SteeredModel, specs: Sequence[GenerationSpec], delays: Sequence[int]
) -> list[tuple[Token, ...]]:
    """All requests at once, each after so many milliseconds."""

    async def one(spec: GenerationSpec, delay: int) -> tuple[Token, ...]:
        await asyncio.sleep(delay / 1000)
        return (await model.generate(spec)).tokens

    found = await asyncio.gather(*map(one, specs, delays))
    await model.close()
    return found


def requests(vocab_size: int) -> st.SearchStrategy[GenerationSpec]:
    """Prompts that share beginnings or don't, all that the sampler can do, steered or not."""
    common = [(7 * n + 3) % vocab_size for n in range(MOST_PROMPT)]
    prompts = st.builds(
        lambda shared, own: PromptIds(tuple((common[:shared] + own)[:MOST_PROMPT])),
        st.sampled_from([0, 1, 16, 31, 48, 64, 65, 80]),
        st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=20),
    )
    samplings = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.0]),
        top_p=st.sampled_from([0.9, 1.0]),
        top_k=st.sampled_from([None, 20]),
        max_tokens=st.integers(1, MOST_TOKENS),
        seed=st.integers(0, 2**63 - 1),
        min_p=st.sampled_from([0.0, 0.02]),
        min_tokens=st.sampled_from([0, 5]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        frequency_penalty=st.sampled_from([0.0, 0.3]),
        logit_bias=st.sampled_from([(), ((5, 1.5),)]),
        top_logprobs=st.sampled_from([0, 2]),
    ).map(lambda one: replace(one, min_tokens=min(one.min_tokens, one.max_tokens or 0)))
    rules = st.sampled_from([Selector.every_step(), Selector.steps(0, 2), Selector.prompt_positions(-1)])
    operations = st.sampled_from([Add(), Add(norm_preserved=True), Ablate(), Clamp(max=0.5)])
    steerings = st.none() | st.builds(
        lambda where, what: SteeringSpec((SteeringRule("v", operation=what, selector=where),)),
        rules,
        operations,
    )
    return st.builds(GenerationSpec, prompts, samplings, steerings)


limits = st.fixed_dictionaries(
    {
        "max_batch_tokens": st.sampled_from([1, 3, 7, 16, 33, 100, 1024]),
        "max_concurrent_requests": st.sampled_from([1, 2, 5, 64]),
        "cache_tokens": st.sampled_from([2 * LEAST_CACHE, 4096]),
    }
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """More than one thread for torch, so that work is split."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_is_the_same_to_the_bit_alone_and_in_any_batch(
    load: Callable[[str], LoadedModel], family: str
) -> None:
    loaded = load(family)
    reference = engine(loaded)

    @given(st.data(), st.lists(requests(loaded.vocab_size), min_size=4, max_size=12), limits)
    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    def check(data: st.DataObject, specs: list[GenerationSpec], bounds: dict[str, int]) -> None:
        count = len(specs)
        delays = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
        expected = asyncio.run(alone(reference, specs))
        assert asyncio.run(together(engine(loaded, **bounds), specs, delays)) == expected

    try:
        check()
    finally:
        asyncio.run(reference.close())


class TestWhereItHolds:
    def test_on_a_cpu_in_float32_it_is_on_unless_said_otherwise(
        self, load: Callable[[str], LoadedModel]
    ) -> None:
        for asked, expected in ((None, True), (True, True), (False, False)):
            model = SteeredModel(load("llama"), "tiny", EngineLimits(deterministic=asked))
            assert (tile_of(model) > 0) is expected
            asyncio.run(model.close())

    @pytest.mark.parametrize(
        ("family", "dtype", "reason"),
        [
            ("llama", "bfloat16", "it runs in bfloat16; float32 is needed"),
            ("gemma2", "float32", "its attention can't be computed request by request"),
        ],
    )
    def test_where_it_does_not_hold_it_is_off_and_asking_for_it_is_refused(
        self, tmp_path: Path, family: str, dtype: str, reason: str
    ) -> None:
        loaded = load_model(str(save_tiny_model(tmp_path / family, family)), "cpu", dtype)
        with pytest.raises(ModelError, match=f"can't be run deterministically: {reason}"):
            SteeredModel(loaded, "tiny", EngineLimits(deterministic=True))
        model = SteeredModel(loaded, "tiny", EngineLimits())
        assert tile_of(model) == 0
        asyncio.run(model.close())

    def test_a_machine_whose_products_depend_on_the_batch_is_found_out(
        self, load: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def depends(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return linear(rows, weight, bias) * (1 + 1e-6 * len(rows))

        monkeypatch.setattr(stability, "linear", depends)
        with pytest.raises(ModelError, match="products on this machine depend on the batch"):
            SteeredModel(load("llama"), "tiny", EngineLimits(deterministic=True))

    def test_a_tile_is_as_large_as_the_products_of_the_machine_demand(
        self, load: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def depends(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return linear(rows, weight, bias) + (1.0 if len(rows) % 16 else 0.0)

        monkeypatch.setattr(stability, "linear", depends)
        assert stability.row_tile(load("llama"), 1024) == (16, 1024)

    async def test_a_forward_is_no_larger_than_the_products_of_the_machine_allow(
        self, load: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def depends(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return linear(rows, weight, bias) + (1.0 if len(rows) % 16 or len(rows) > 400 else 0.0)

        monkeypatch.setattr(stability, "linear", depends)
        model = SteeredModel(load("llama"), "tiny", EngineLimits(deterministic=True, max_batch_tokens=1024))
        try:
            assert (
                processor(model).cache.max_batch_tokens == 16 * 16
            )  # the next size that is tried is 31 * 16
        finally:
            await model.close()


def packed(
    lengths: Sequence[int], rows: Sequence[int], window: int | None, heads: int, kv_heads: int
) -> tuple[list[tuple[torch.Tensor, ...]], Segments, list[torch.Tensor]]:
    """Queries, keys and values of requests as the cache gives them, their segments, and what sdpa makes of each."""
    generator = torch.Generator().manual_seed(0)
    parts, expected = [], []
    for length, count in zip(lengths, rows, strict=True):
        query = torch.randn(heads, count, 8, generator=generator)
        key, value = (torch.randn(kv_heads, length, 8, generator=generator) for _ in range(2))
        at, newest = torch.arange(length), torch.arange(length - count, length)[:, None]
        mask = at <= newest
        if window is not None:
            mask &= at > newest - window
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        expected.append(result.transpose(0, 1))
        kept = length if window is None else min(length, window - 1 + count)
        parts.append((query, key[:, length - kept :], value[:, length - kept :]))
    bounds = [[0], [0]]
    for query, key, _ in parts:
        bounds[0].append(bounds[0][-1] + query.shape[1])
        bounds[1].append(bounds[1][-1] + key.shape[1])
    return parts, Segments(bounds[0], bounds[1], list(lengths)), expected


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=6),
    st.sampled_from([None, 1, 5, 64, 100]),
    st.sampled_from([(4, 2), (3, 3), (5, 1)]),
    st.sampled_from([4, 16]),
)
@example([(64, 1), (65, 1), (128, 1)], None, (4, 2), 4)
@settings(max_examples=60)
def test_attention_is_that_of_the_library_and_no_row_knows_of_the_others(
    sizes: list[tuple[int, int]], window: int | None, heads: tuple[int, int], tile: int
) -> None:
    lengths = [length for length, _ in sizes]
    rows = [min(length, count) for length, count in sizes]
    parts, segments, expected = packed(lengths, rows, window, *heads)
    query, key, value = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    scale = 1 / math.sqrt(8)

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        return attend(query, key, value, arrange(segments, len(key), window), scale, tile)

    together = attention(query, key, value, segments)

    torch.testing.assert_close(together, torch.cat(expected), rtol=1e-5, atol=1e-6)
    for number, (own_query, own_key, own_value) in enumerate(parts):
        count, kept = own_query.shape[1], own_key.shape[1]
        own = Segments([0, count], [0, kept], [lengths[number]])
        bounds = slice(*segments.queries[number : number + 2])
        assert torch.equal(attention(own_query, own_key, own_value, own), together[bounds])
        last = Segments([0, 1], [0, kept], [lengths[number]])
        newest = attention(own_query[:, -1:], own_key, own_value, last)
        assert torch.equal(newest[0], together[bounds][-1])


def test_whatever_forward_a_module_had_it_has_again() -> None:
    def other(rows: torch.Tensor) -> torch.Tensor:
        return rows

    model = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.SiLU())
    model[1].forward = other  # as nnsight does
    with AlignedActivations(model):
        assert torch.equal(model[1](torch.ones(4, 8)), silu(torch.ones(4, 8)))
    assert "forward" not in vars(model[0])
    assert model[1].forward is other


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("width", [8, 33, 384, 4864, 40_000])
def test_an_activation_of_a_row_does_not_depend_on_the_rows_beside_it(width: int) -> None:
    rows = torch.randn(1, 68, width, generator=torch.Generator().manual_seed(0))
    whole = _in_pieces(silu)(rows)
    torch.testing.assert_close(whole, silu(rows))
    for count in (4, 8, 12, 36):
        assert torch.equal(_in_pieces(silu)(rows[:, :count]), whole[:, :count])
