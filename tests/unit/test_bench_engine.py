"""The engine's benchmark: that it compares what it says, and reports under its keys. Nothing here depends on time."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import EngineLimits, SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import ContextTrigger, SteeringRule, SteeringSpec
from tests.bench.engine.batches import complete, steer, throughput
from tests.bench.engine.bench import bench_engine, measure_determinism, measure_steering
from tests.bench.engine.comparisons import Sizes
from tests.bench.engine.models import byte_level_tokenizer, endless, random_model
from tests.bench.engine.pairs import Speeds, measure_pair
from tests.bench.engine.report import Finding, engine_report
from tests.bench.engine.traffic import (
    CONTEXT_TOKENS,
    PROMPT_TOKENS,
    contexts_like,
    never_firing,
    prompts,
    unsteered,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector

TINY = Sizes(tokens=3, requests=2, many=3, contexts=20, runs=1)
COMPARISONS = (
    "steered_over_unsteered",
    "k64_over_k1",
    "trace_on_over_off",
    "context_trigger_overhead",
)


def tiny_random_model(dtype: torch.dtype = torch.float32) -> LoadedModel:
    config = transformers.Qwen3Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=300,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return random_model(config, dtype, "cpu")


@pytest.fixture
async def served() -> AsyncIterator[SteeredModel]:
    model = SteeredModel(tiny_random_model(), "tiny", EngineLimits())
    yield model
    await model.close()


async def test_every_comparison_of_a_model_is_reported_as_a_ratio_with_its_spread() -> None:
    findings: list[Finding] = []
    await measure_steering("tiny", tiny_random_model, TINY, findings.append)
    report = engine_report(findings)
    assert list(report) == [*(f"engine.{name}" for name in COMPARISONS), "engine.timed"]
    for name in COMPARISONS:
        ratio = report[f"engine.{name}"]["tiny"]  # type: ignore[index]
        assert list(ratio) == ["median", "min", "max", "runs"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert ratio["runs"] == 1


async def test_the_report_says_how_many_tokens_and_steps_were_timed() -> None:
    findings: list[Finding] = []
    await measure_steering("tiny", tiny_random_model, TINY, findings.append)
    timed = engine_report(findings)["engine.timed"]
    requests = {name: timed[name]["tiny"]["requests"] for name in COMPARISONS}  # type: ignore[index]
    tokens = {name: timed[name]["tiny"]["tokens"] for name in COMPARISONS}  # type: ignore[index]
    steps = {name: timed[name]["tiny"]["steps"] for name in COMPARISONS}  # type: ignore[index]
    assert requests == dict(zip(COMPARISONS, (2, 3, 2, 2), strict=True))
    assert tokens == dict(zip(COMPARISONS, (6, 9, 6, 6), strict=True))
    assert steps == dict.fromkeys(COMPARISONS, 3)


async def test_the_bundled_model_is_priced_for_determinism_in_batches_of_three_sizes() -> None:
    report = await bench_engine(["bundled"], "cpu", runs=1, tokens=2, console=Console(file=io.StringIO()))
    ratios = report["engine.deterministic_over_fast"]["bundled"]  # type: ignore[index]
    assert list(ratios) == ["1", "8", "32"]
    assert all(ratio["median"] > 0 for ratio in ratios.values())


async def test_a_model_that_cannot_be_deterministic_is_reported_with_the_reason() -> None:
    findings: list[Finding] = []
    await measure_determinism("half", lambda: tiny_random_model(torch.bfloat16), (1,), TINY, findings.append)
    report = engine_report(findings)
    refused = report["engine.deterministic_over_fast"]["half"]["refused"]  # type: ignore[index]
    assert "can't be run deterministically" in refused
    assert report["engine.timed"] == {}


async def test_arms_are_interleaved_in_an_order_that_alternates_after_one_round_that_does_not_count() -> None:
    ran: list[str] = []

    async def changed() -> float:
        ran.append("changed")
        return float(len(ran))

    async def baseline() -> float:
        ran.append("baseline")
        return float(len(ran))

    speeds = await measure_pair(changed, baseline, runs=2)
    assert ran == ["baseline", "changed", "changed", "baseline", "baseline", "changed"]
    assert speeds == Speeds(changed=(3.0, 6.0), baseline=(4.0, 5.0))


def test_a_summary_is_of_the_ratios_and_not_a_ratio_of_summaries() -> None:
    speeds = Speeds(changed=(1.0, 6.0, 4.0), baseline=(2.0, 2.0, 4.0))
    assert speeds.summary == {"median": 1.0, "min": 0.5, "max": 3.0, "runs": 3}


async def test_a_batch_that_ends_early_is_no_measurement(tmp_path: Path) -> None:
    model = SteeredModel(ending_at_once(tmp_path), "ending", EngineLimits())
    with pytest.raises(ValueError, match=r"generated \[1, 1\] tokens; expected \[3, 3\]"):
        await throughput(model, unsteered(model.loaded, 2, 3))
    await model.close()


async def test_a_model_without_its_end_of_sequence_token_runs_to_the_length(tmp_path: Path) -> None:
    model = SteeredModel(endless(ending_at_once(tmp_path)), "endless", EngineLimits())
    completions = await complete(model, unsteered(model.loaded, 2, 3))
    assert [completion.ids for completion in completions] == [(0, 0, 0)] * 2
    await model.close()


def ending_at_once(folder: Path) -> LoadedModel:
    """A model that knows one token, 0, which is the end."""
    loaded = load_model(str(save_tiny_model(folder, "qwen3")))
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
        loaded.model.lm_head.bias = torch.nn.Parameter(torch.full((loaded.vocab_size,), -1e9))
        loaded.model.lm_head.bias[0] = 0.0
    loaded.model.generation_config.eos_token_id = 0
    return loaded


async def test_batches_generate_every_token_whole_and_streamed(served: SteeredModel) -> None:
    plain = unsteered(served.loaded, 2, 3)
    assert await throughput(served, plain) > 0
    assert await throughput(served, plain, streaming=True) > 0


async def test_a_waiting_vector_finds_the_traffic_in_its_contexts_and_never_enough_of_it(
    served: SteeredModel,
) -> None:
    plain = unsteered(served.loaded, 4, 24)
    completions = await complete(served, plain)
    histories = [
        (*prompt, *completion.ids)
        for prompt, completion in zip(prompts(served.loaded.vocab_size, 4), completions, strict=True)
    ]
    contexts = contexts_like(histories, 500, served.loaded.vocab_size)
    served.vectors.load(
        "waiting", encode_vector(random_vector(served.loaded, "waiting", [1], contexts=contexts))
    )
    deep = SteeringSpec((SteeringRule("waiting", trigger=ContextTrigger(min_match_tokens=8)),))
    waiting = await complete(served, steer(plain, [never_firing("waiting")] * 4))
    firing = await complete(served, steer(plain, [deep] * 4))
    assert [one.usage.steered_rows for one in waiting] == [0] * 4
    assert [one.ids for one in waiting] == [one.ids for one in completions]
    assert all(one.usage.steered_rows > 0 for one in firing)


def test_contexts_end_like_the_traffic_before_every_other_place() -> None:
    histories = [tuple(range(100 * request, 100 * request + 40)) for request in range(3)]
    contexts = contexts_like(histories, 200, vocab_size=1)  # whatever is not of the traffic is 0
    places = {context[-1] % 100 + 1 for context in contexts}
    assert places == set(range(PROMPT_TOKENS, 41, 2))
    assert {len(context) for context in contexts} == {CONTEXT_TOKENS}
    depths = {sum(token > 0 for token in context) for context in contexts if context[-1] >= 100}
    assert depths >= {1, CONTEXT_TOKENS}


def test_every_id_of_the_made_up_tokenizer_has_a_text_of_its_own() -> None:
    tokenizer = byte_level_tokenizer(1_000)
    assert len(tokenizer) == 1_000
    texts = [tokenizer.decode([token_id]) for token_id in range(256, 1_000)]
    assert len(set(texts)) == 744
    assert all(2 <= len(text) <= 8 for text in texts)
