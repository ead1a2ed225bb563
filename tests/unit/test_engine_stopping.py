"""An engine that stops or fails lets nobody wait."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from steering_engine.errors import EngineStoppedError
from steering_engine.model import SteeredModel
from tests.support.engine import busy, engine_request, greedy, running


class TestStopping:
    async def test_close_ends_running_and_waiting_requests(self, own: SteeredModel) -> None:
        tasks = [asyncio.create_task(own.generate(greedy(9, seed=n, tokens=240))) for n in range(12)]
        await busy(own)
        await own.close()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(result, EngineStoppedError) for result in results)
        assert {str(result) for result in results} == {"the engine was closed"}

    async def test_close_ends_the_use_of_vectors(self, own: SteeredModel) -> None:
        released: list[str] = []

        async def use(name: str) -> None:
            asked = engine_request(own, greedy(9, tokens=240), name)
            async for _ in own.engine.submit_many([asked], lambda: released.append(name)):
                pass

        running = asyncio.create_task(use("running"))
        await busy(own)
        await own.close()
        for task in (running, asyncio.create_task(use("too late"))):
            with pytest.raises(EngineStoppedError):
                await asyncio.wait_for(task, 10)
        assert released == ["running", "too late"]

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
