"""A thousand requests that end in every way leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steering_engine.blocks import find_blocks
from steering_engine.engine.base import EngineRequest
from steering_engine.engine.run import Run
from steering_engine.errors import NotFiniteError
from steering_engine.model import SteeredModel
from steering_spec import (
    Ablate,
    Clamp,
    ConflictPolicy,
    ContextTrigger,
    FinishReason,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
)
from tests.support.direct import request, running_engine
from tests.support.engine import forget_pages, idle, processor
from tests.support.lively import lively_model, lively_vectors, some_ids
from tests.support.server import wait_until

REQUESTS = 1000
AT_ONCE = 40
CACHE_TOKENS = 512
STEERINGS: Sequence[SteeringSpec | None] = (
    None,
    SteeringSpec((SteeringRule("wide"),)),
    SteeringSpec((SteeringRule("late", operation=Clamp(-1, 1), selector=Selector.prompt_window(4)),)),
    SteeringSpec((SteeringRule("middle", operation=Ablate(), trigger=ContextTrigger(1, hold_steps=2)),)),
    SteeringSpec((SteeringRule("late", trigger=ProbeTrigger(threshold=0.2, cooldown_steps=1)),)),
    SteeringSpec(
        (SteeringRule("wide", trigger=SimilarityTrigger(min_cosine=0.2)), SteeringRule("wide", -0.5)),
        ConflictPolicy.FIRST,
    ),
    SteeringSpec((SteeringRule("endless", 1000.0, selector=Selector.steps(2)),)),
)


class EnoughError(Exception):
    """What an `until` raises here."""


def raises(_piece: str) -> bool:
    raise EnoughError


def drawn(model: SteeredModel, number: int) -> EngineRequest:
    """A request whose prompt, sampling, steering and end are random."""
    draw = random.Random(number)
    prompt = (*some_ids(30)[: draw.choice([0, 16, 30])], *some_ids(draw.randint(1, 8), seed=number))
    made = request(
        model,
        f"{number}",
        prompt,
        draw.choice(STEERINGS),
        tokens=draw.choice([1, 4, 12, 40]),
        temperature=draw.choice([0.0, 1.0]),
        seed=number,
        streaming=draw.random() < 0.5,
    )
    until = draw.choice([None, None, None, lambda piece: piece == "a", raises])
    stop = draw.choice([(), (), ("b", "cc")])
    return replace(made, until=until, sampling=replace(made.sampling, stop=stop))


async def live(model: SteeredModel, number: int, released: list[int]) -> str:
    """One request from its beginning to its end; how it ended. `released` hears when the engine is done with it."""
    draw = random.Random(-number)
    asked = drawn(model, number)
    copies = [asked] if number % 5 else [replace(asked, request_id=f"{number}.{copy}") for copy in range(3)]
    leave_after = draw.choice([None, None, 1, 3])
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    how = draw.choice(["read", "read", "leave", "cancel by id", "cancel the task"])
    if how == "cancel by id":
        loop.call_later(draw.random() / 50, model.engine.cancel, draw.choice(copies).request_id)
    elif how == "cancel the task":
        loop.call_later(draw.random() / 50, task.cancel)
    reason: FinishReason | None = None
    seen = 0
    try:
        async with aclosing(model.engine.submit_many(copies, lambda: released.append(number))) as chunks:
            async for _, chunk in chunks:
                reason = chunk.finish_reason
                seen += len(chunk.tokens)
                if how == "leave" and leave_after is not None and seen >= leave_after:
                    return "left"
    except (NotFiniteError, EnoughError) as error:
        return type(error).__name__
    except asyncio.CancelledError:
        return "task cancelled"
    return "cancelled" if reason is None else reason.value


def hooks_of(model: SteeredModel) -> list[list[Any]]:
    modules = [model.loaded.model, *find_blocks(model.loaded.model)]
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in modules]


def table_of(model: SteeredModel) -> list[torch.Tensor]:
    return [model.vectors._table.rows(block).clone() for block in range(model.loaded.block_count)]


async def test_a_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    loaded = lively_model(tmp_path, "qwen3")
    vectors = lively_vectors(loaded)
    endless = vectors["wide"].metadata.model_copy(
        update={"name": "endless", "calibrated_strength": dict.fromkeys(range(3), 3e38)}
    )
    vectors["endless"] = replace(vectors["wide"], metadata=endless)
    await asyncio.to_thread(gc.collect)  # the loop has its own thread for such calls from now on
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    limits = {"cache_tokens": CACHE_TOKENS, "max_batch_tokens": 64, "max_concurrent_requests": 24}
    async with running_engine(loaded, vectors, **limits) as model:
        hooks, table = hooks_of(model), table_of(model)
        numbers = iter(range(REQUESTS))
        ends: Counter[str] = Counter()
        released: list[int] = []

        async def visitor() -> None:
            for number in numbers:
                ends[await asyncio.create_task(live(model, number, released))] += 1

        await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
        await idle(model)
        await asyncio.to_thread(wait_until, lambda: len(released) >= REQUESTS)

        assert sorted(released) == list(range(REQUESTS))  # once each
        assert ends.total() == REQUESTS
        assert set(ends) == {
            *(reason.value for reason in FinishReason if reason is not FinishReason.UNKNOWN),
            "left", "cancelled", "task cancelled", "NotFiniteError", "EnoughError",
        }  # fmt: skip
        engine: Any = model.engine
        assert engine._runs == engine._running == {}
        assert engine._manager.input_queue.empty()
        assert processor(model).output_router.output_queue.empty()
        scheduler = processor(model).scheduler
        assert not scheduler.active_requests
        assert not scheduler.waiting_requests
        assert not scheduler.waiting_requests_order
        assert not scheduler._requests_to_cancel
        assert not scheduler.block_new_requests
        assert model.stats().free_cache_tokens == CACHE_TOKENS  # pages kept for sharing count as free
        forget_pages(model)
        assert processor(model).cache.compute_free_capacity() == 1
        assert hooks_of(model) == hooks
        assert all(map(torch.equal, table_of(model), table))
        assert asyncio.all_tasks() == tasks
        gc.collect()
        kept = sum(type(one) is Run for one in gc.get_objects())
        assert kept <= limits["max_concurrent_requests"]  # those of the last batch
    assert set(threading.enumerate()) == threads
    assert not any(block._forward_hooks for block in find_blocks(loaded.model))
