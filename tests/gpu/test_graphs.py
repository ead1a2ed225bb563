"""The engine on a CUDA device: captured graphs, the steering in them, and requests beside each other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steering_engine.model import EngineLimits, SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import (
    Ablate,
    Clamp,
    Completion,
    GenerationSpec,
    ProbeTrigger,
    PromptIds,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector, save_random_vector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENS = 24
RULES = [
    SteeringRule("one", 1.0),
    SteeringRule("one", -2.0, selector=Selector.steps(3)),
    SteeringRule("two", 1.0, operation=Ablate()),
    SteeringRule("two", 1.0, operation=Clamp(min=40.0), selector=Selector.prompt_window(-4)),
]


@pytest.fixture(scope="module", params=["qwen3", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", request.param, **size)


def running(folder: Path, *, graphs: bool, **others: Any) -> SteeredModel:
    limits = EngineLimits(
        **{
            "max_concurrent_requests": 64,
            "max_batch_tokens": 128,
            "cache_tokens": 8192,
            "cuda_graphs": graphs,
            **others,
        }
    )
    model = SteeredModel.load(str(folder), device="cuda", dtype="bfloat16", limits=limits)
    for name, seed in (("one", 1), ("two", 2)):
        model.vectors.load(name, save_random_vector(folder, model.loaded, name, [0, 1, 2], seed=seed))
    weight = torch.randn(model.loaded.hidden_size, generator=torch.Generator().manual_seed(5))
    reading = random_vector(
        model.loaded, "reading", [1, 2], seed=3, probes={0: (weight, 0.0)}, probe_threshold={0: 0.5}
    )
    model.vectors.load("reading", encode_vector(reading))
    return model


@pytest.fixture(scope="module")
def captured(folder: Path) -> Iterator[SteeredModel]:
    model = running(folder, graphs=True)
    yield model
    asyncio.run(model.close())


def specs(steered: bool) -> list[GenerationSpec]:
    found = []
    for index in range(12):
        torch.manual_seed(index)
        prompt = PromptIds(tuple(torch.randint(2, 258, (5 + 3 * index,)).tolist()))
        rule = RULES[index % len(RULES)]
        steering = SteeringSpec((rule,)) if steered and index % 3 else None
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS)
        found.append(GenerationSpec(prompt, sampling, steering))
    return found


async def together(model: SteeredModel, asked: list[GenerationSpec]) -> list[Completion]:
    return await asyncio.gather(*(model.generate(spec) for spec in asked))


def processor(model: SteeredModel) -> Any:
    return model.engine._manager.batch_processor  # type: ignore[attr-defined]


def graphs(model: SteeredModel) -> int:
    return len(processor(model).inputs_and_outputs.graphs._storage)


async def test_replayed_graphs_and_plain_forwards_give_the_same(folder: Path, captured: SteeredModel) -> None:
    plain = running(folder, graphs=False)
    try:
        expected = await together(plain, specs(steered=True))
    finally:
        await plain.close()
    found = await together(captured, specs(steered=True))
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.tokens, other.tokens, strict=True):
            if mine.id != theirs.id:  # where two tokens are equally likely, rounding decides
                assert abs(mine.logprob - theirs.logprob) < 0.1
                break
            assert mine.logprob == pytest.approx(theirs.logprob, abs=0.1)


async def test_steering_changes_what_is_generated(captured: SteeredModel) -> None:
    steered = await together(captured, specs(steered=True))
    unsteered = await together(captured, specs(steered=False))
    changed = [one.ids != other.ids for one, other in zip(steered, unsteered, strict=True)]
    assert changed[1::3] == [True] * 4


async def test_unsteered_requests_keep_their_exact_bits_beside_steered_ones(captured: SteeredModel) -> None:
    mixed = await together(captured, specs(steered=True))
    plain = await together(captured, specs(steered=False))
    for index in range(0, 12, 3):
        assert mixed[index].tokens == plain[index].tokens


async def test_new_requests_and_vectors_capture_nothing(folder: Path, captured: SteeredModel) -> None:
    before = graphs(captured)
    assert before > 0
    name = f"late-{folder.parent.name[-1]}"
    captured.vectors.load(name, save_random_vector(folder, captured.loaded, name, [1], seed=9))
    asked = [
        GenerationSpec(one.prompt, one.sampling, SteeringSpec((SteeringRule(name),)))
        for one in specs(steered=False)
    ]
    late = await together(captured, asked * 5)
    assert graphs(captured) == before
    assert late[0].ids != (await together(captured, specs(steered=False)))[0].ids


async def test_a_probe_decides_inside_a_replayed_graph(captured: SteeredModel) -> None:
    rule = SteeringRule("reading", trigger=ProbeTrigger(hold_steps=2, cooldown_steps=1))
    asked = [
        GenerationSpec(one.prompt, one.sampling, SteeringSpec((rule,)), steering_trace=True)
        for one in specs(steered=False)
    ]
    found = await together(captured, asked)
    fired = [act for one in found for act in one.acts if act.score is not None]
    assert fired
    assert all(act.score >= 0.5 for act in fired if act.score is not None)
    assert sum(one.usage.steered_rows for one in found) < TOKENS * len(found)  # at some steps it did not fire
    for one in found:
        steps = [act.step for act in one.acts if act.score is not None]
        assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(steps))
        held = [act.step for act in one.acts if act.score is None]
        assert all(step - 1 in steps for step in held)


@pytest.mark.parametrize("offload_gib", [0.0, 0.05])
async def test_requests_that_give_way_go_on_as_if_they_had_not(
    folder: Path, captured: SteeredModel, offload_gib: float
) -> None:
    expected = await together(captured, specs(steered=True))
    cramped = running(folder, graphs=True, cache_tokens=192, max_context_tokens=128, offload_gib=offload_gib)
    try:
        found = await together(cramped, specs(steered=True))
        assert cramped.stats().active_requests == 0
    finally:
        await cramped.close()
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.tokens, other.tokens, strict=True):
            if mine.id != theirs.id:
                assert abs(mine.logprob - theirs.logprob) < 0.1
                break
