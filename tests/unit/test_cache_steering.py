"""Cached rows serve only requests that are steered alike: whatever ran before, the bits are those of a cold cache.

Every request generates the same ids, because a bias lets it draw nothing else. So pages of prompts and of completions
hold equal ids under different steering, which is what the salt of their hashes has to tell apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from steering_engine.engine.base import EngineRequest
from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_engine.steering.triggers import Reading
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    ConflictPolicy,
    ContextTrigger,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    TriggerKind,
)
from tests.support.direct import Got, engine_with, get, get_all, request, watched_logits
from tests.support.engine import forget_pages, idle, processor
from tests.support.lively import ALPHABET, lively_model, lively_vectors, some_ids

PROMPT = tuple(some_ids(34))  # two whole pages and two rows
FORCED = ALPHABET[6]
TOKENS = 16  # of which 14 complete a page and the rest begin another
BIAS = ((FORCED, 1e4),)

TWO = (
    SteeringRule("late", trigger=ProbeTrigger(threshold=0.01, cooldown_steps=1)),
    SteeringRule("wide", 0.5),
)

STEERINGS: dict[str, SteeringSpec | None] = {
    "unsteered": None,
    "add": SteeringSpec((SteeringRule("wide"),)),
    "stronger": SteeringSpec((SteeringRule("wide", 1.5),)),
    "opposite": SteeringSpec((SteeringRule("wide", -1.0),)),
    "another vector": SteeringSpec((SteeringRule("late"),)),
    "another block": SteeringSpec((SteeringRule("wide", layers=(1,)),)),
    "norm preserved": SteeringSpec((SteeringRule("wide", operation=Add(True)),)),
    "ablate": SteeringSpec((SteeringRule("wide", operation=Ablate()),)),
    "clamp": SteeringSpec((SteeringRule("wide", operation=Clamp(-0.5, 0.5)),)),
    "another bound": SteeringSpec((SteeringRule("wide", operation=Clamp(-0.5, 0.4)),)),
    "in the prompt": SteeringSpec((SteeringRule("wide", selector=Selector.prompt_window(20)),)),
    "in all of the prompt": SteeringSpec((SteeringRule("wide", selector=Selector.prompt_window()),)),
    "after tokens": SteeringSpec((SteeringRule("wide", selector=Selector.after_tokens(FORCED)),)),
    "late steps": SteeringSpec((SteeringRule("wide", selector=Selector.step_window(5)),)),
    "context": SteeringSpec((SteeringRule("middle", trigger=ContextTrigger(1, cooldown_steps=1)),)),
    "probe": SteeringSpec((SteeringRule("wide", trigger=ProbeTrigger(0, 0.05, cooldown_steps=1)),)),
    "similarity": SteeringSpec((SteeringRule("wide", trigger=SimilarityTrigger(0, 0.1, 2, 1)),)),
    "first of two": SteeringSpec(TWO, ConflictPolicy.FIRST),
    "both of two": SteeringSpec(TWO),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return lively_model(tmp_path_factory.mktemp("cache"), "qwen3")


def engine(loaded: LoadedModel, **limits: Any) -> SteeredModel:
    vectors = lively_vectors(loaded)
    vectors["middle"] = replace(vectors["middle"], contexts=((FORCED,), PROMPT[-3:]))
    return engine_with(loaded, vectors, **{"deterministic": True, "max_batch_tokens": 32, **limits})


@pytest.fixture(scope="module")
def model(loaded: LoadedModel) -> Iterator[SteeredModel]:
    model = engine(loaded, cache_tokens=4096)
    yield model
    asyncio.run(model.close())


@pytest.fixture(scope="module")
def cramped(loaded: LoadedModel) -> Iterator[SteeredModel]:
    """An engine whose cache holds seven pages, of which a request needs four."""
    model = engine(loaded, cache_tokens=7 * PAGE_TOKENS)
    yield model
    asyncio.run(model.close())


def forced(
    model: SteeredModel, steering: SteeringSpec | None, prompt: Sequence[int] = PROMPT
) -> EngineRequest:
    """A request that can draw nothing but one id."""
    made = request(model, "it", prompt, steering, tokens=TOKENS)
    return replace(made, sampling=replace(made.sampling, logit_bias=BIAS))


async def logits_of(model: SteeredModel, asked: EngineRequest) -> tuple[Got, torch.Tensor]:
    """What a request gives, and the logits before the bias `[steps, vocab]`."""
    await idle(model)
    with watched_logits(model) as logits:
        got = await get(model, asked)
    return got, torch.stack(logits[asked.request_id])


@pytest.fixture(scope="module")
def cold(model: SteeredModel) -> dict[str, tuple[Got, torch.Tensor]]:
    """What each steering gives with an empty cache."""
    found = {}
    for name, steering in STEERINGS.items():
        forget_pages(model)
        found[name] = asyncio.run(logits_of(model, forced(model, steering)))
    return found


def test_all_steerings_here_give_equal_ids_and_different_logits(
    cold: dict[str, tuple[Got, torch.Tensor]],
) -> None:
    assert {got.ids for got, _ in cold.values()} == {(FORCED,) * TOKENS}
    logits = [rows for _, rows in cold.values()]
    assert not any(torch.equal(one, other) for n, one in enumerate(logits) for other in logits[:n])
    kinds = {act.trigger for got, _ in cold.values() for act in got.acts}
    assert kinds == {None, *TriggerKind} - {TriggerKind.UNKNOWN}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("unsteered", "add"),
        ("unsteered", "in the prompt"),
        ("unsteered", "probe"),
        ("add", "stronger"),
        ("add", "opposite"),
        ("add", "another vector"),
        ("add", "norm preserved"),
        ("ablate", "clamp"),
        ("probe", "similarity"),
        ("first of two", "both of two"),
    ],
)
async def test_after_another_steering_a_request_has_the_bits_of_a_cold_cache(
    one: str, other: str, model: SteeredModel, cold: dict[str, tuple[Got, torch.Tensor]]
) -> None:
    for first, second in ((one, other), (other, one)):
        forget_pages(model)
        await logits_of(model, forced(model, STEERINGS[first]))
        got, logits = await logits_of(model, forced(model, STEERINGS[second]))
        assert got.acts == cold[second][0].acts
        assert torch.equal(logits, cold[second][1])


async def test_when_all_have_run_and_left_their_pages_each_has_the_bits_of_a_cold_cache(
    model: SteeredModel, cold: dict[str, tuple[Got, torch.Tensor]]
) -> None:
    forget_pages(model)
    for _ in range(2):
        for name, steering in STEERINGS.items():
            got, logits = await logits_of(model, forced(model, steering))
            assert got.acts == cold[name][0].acts, name
            assert torch.equal(logits, cold[name][1]), name


@pytest.mark.parametrize("name", ["add", "in the prompt", "context", "probe"])
@pytest.mark.parametrize("continued", [5, TOKENS])
async def test_a_prompt_that_continues_a_steered_completion_shares_nothing_that_was_steered_otherwise(
    name: str, continued: int, model: SteeredModel
) -> None:
    longer = (*PROMPT, *[FORCED] * continued)
    for steering in (None, STEERINGS[name]):  # what were steps are rows of the prompt now
        forget_pages(model)
        expected, expected_logits = await logits_of(model, forced(model, steering, longer))
        forget_pages(model)
        await logits_of(model, forced(model, STEERINGS[name]))
        got, logits = await logits_of(model, forced(model, steering, longer))
        assert got == expected
        assert torch.equal(logits, expected_logits)


async def test_rows_on_which_the_forward_decided_otherwise_are_not_shared_under_equal_salts(
    model: SteeredModel,
) -> None:
    def with_threshold(threshold: float) -> EngineRequest:
        """As if rounding had turned each decision: the digest of the steering stays the same."""
        asked = forced(model, STEERINGS["probe"])
        assert asked.plan is not None
        (rule,) = asked.plan.rules
        assert rule.trigger is not None
        assert isinstance(rule.trigger.condition, Reading)
        condition = replace(rule.trigger.condition, threshold=threshold)
        rule = replace(rule, trigger=replace(rule.trigger, condition=condition))
        return replace(asked, plan=replace(asked.plan, rules=(rule,)))

    requests = [with_threshold(-1000.0), with_threshold(1000.0)]
    expected = []
    for asked in requests:
        forget_pages(model)
        expected.append(await logits_of(model, asked))
    assert [len(got.acts) for got, _ in expected] == [TOKENS // 2, 0]  # it rests at every other step
    for asked, (got, rows) in zip(requests[::-1], expected[::-1], strict=True):
        again, logits = await logits_of(model, asked)
        assert again == got
        assert torch.equal(logits, rows)


@pytest.mark.parametrize("name", ["probe", "in the prompt"])
async def test_a_seeded_request_draws_the_same_with_a_warm_cache(name: str, model: SteeredModel) -> None:
    asked = request(model, "it", PROMPT, STEERINGS[name], tokens=40, temperature=1.0, seed=11)
    forget_pages(model)
    expected, expected_logits = await logits_of(model, asked)
    for other in (None, STEERINGS["add"], STEERINGS[name]):
        forget_pages(model)
        before = request(model, "it", PROMPT, other, tokens=40, temperature=1.0, seed=11)
        await logits_of(model, before)
        got, logits = await logits_of(model, asked)
        assert got == expected
        assert torch.equal(logits, expected_logits)


async def test_pages_that_were_evicted_are_computed_again_with_the_same_bits(
    cramped: SteeredModel, cold: dict[str, tuple[Got, torch.Tensor]]
) -> None:
    ledger = next(iter(processor(cramped).cache.cache_allocators.values())).ledger
    forget_pages(cramped)
    for name in [*STEERINGS][::2] * 2:
        got, logits = await logits_of(cramped, forced(cramped, STEERINGS[name]))
        assert got.acts == cold[name][0].acts, name
        assert torch.equal(logits, cold[name][1]), name
    # All of them together completed many times as many pages as there are.
    assert len(ledger.hash_to_block) <= 7


@pytest.mark.parametrize("name", ["add", "in the prompt", "context", "probe", "similarity", "first of two"])
async def test_a_request_that_gave_up_its_pages_goes_on_with_the_same_bits(
    name: str, cramped: SteeredModel, model: SteeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requests(engine: SteeredModel) -> list[EngineRequest]:
        return [
            request(engine, f"{n}", PROMPT[n:], STEERINGS[name], tokens=40, temperature=0.7 * (n % 2), seed=n)
            for n in range(4)
        ]

    expected = []
    for asked in requests(model):
        forget_pages(model)
        expected.append(await logits_of(model, asked))
    scheduler = processor(cramped).scheduler
    add = scheduler.add_waiting_request
    restarts = []

    def note(state: Any) -> None:
        restarts.append(state._true_initial_tokens)
        add(state)

    monkeypatch.setattr(scheduler, "add_waiting_request", note)
    await idle(cramped)
    with watched_logits(cramped) as logits:
        got = await asyncio.wait_for(get_all(cramped, requests(cramped)), 60)
    assert any(restarts), "no request had to give up its pages"
    assert any(one.acts for one in got)
    for number, (one, (other, rows)) in enumerate(zip(got, expected, strict=True)):
        assert one == other
        assert torch.equal(torch.stack(logits[f"{number}"]), rows)
