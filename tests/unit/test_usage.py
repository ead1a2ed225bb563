"""What completions cost: the time until their first token, and the counts since the engine's start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from steering_engine.engine.base import EngineRequest
from steering_engine.model import SteeredModel
from steering_spec import GenerationSpec, SteeringRule
from tests.support.engine import greedy, idle


async def test_the_first_token_comes_after_the_wait_for_a_turn(model: SteeredModel) -> None:
    """Told from acceptance on, as a caller meets it; the time of further tokens must not bear the wait."""
    waited = 0.0

    @asynccontextmanager
    async def turn(_requests: Sequence[EngineRequest]) -> AsyncIterator[None]:
        nonlocal waited
        began = time.perf_counter()
        await model.generate(greedy(5, tokens=4))
        waited = time.perf_counter() - began
        yield

    (completion,) = await model.generate_many(greedy(5, tokens=4), turn)
    assert waited < completion.usage.first_token_seconds < completion.usage.total_seconds


async def test_counts_are_those_of_now_and_keep_what_was_cancelled(model: SteeredModel) -> None:
    """A request that is answered as a whole counts while it runs, and when nobody waits for it any more."""
    before = model.stats()
    long: GenerationSpec = greedy(5, SteeringRule("one", 0.3), tokens=240, min_tokens=240)
    task = asyncio.create_task(model.generate(long))
    async with asyncio.timeout(20):
        while not task.done() and model.stats().generated_tokens < before.generated_tokens + 10:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not task.done()
    running = model.stats()
    assert running.steered_rows >= before.steered_rows + 10
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await idle(model)
    after = model.stats()
    assert after.generated_tokens >= running.generated_tokens
    assert after.steered_rows >= running.steered_rows


async def test_counts_are_those_of_the_completions(model: SteeredModel) -> None:
    before = model.stats()
    done = await model.generate(greedy(5, SteeringRule("one", 0.3), tokens=4))
    after = model.stats()
    assert after.generated_tokens - before.generated_tokens == done.usage.generated_tokens
    assert after.steered_rows - before.steered_rows == done.usage.steered_rows > 0
