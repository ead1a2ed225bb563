"""What reaches the callers of a running engine: that something has come for them, and what has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput

from steering_engine.engine.run import Run
from steering_engine.errors import EngineStoppedError


class Router(OutputRouter):  # type: ignore[misc]
    """Takes the library's results. Tokens have reached their runs already; only failures are news."""

    def __init__(self, runs: dict[str, Run]) -> None:
        super().__init__()
        self._runs = runs
        self.closing = False

    def deliver(self, output: GenerationOutput) -> None:
        """Tells a run that it has failed."""
        run = self._runs.get(output.request_id)
        if run is not None and output.error is not None:
            self.fail(run, output.error)

    def fail(self, run: Run, error: object) -> None:
        """Ends a run; its caller gets EngineStoppedError."""
        run.fail(
            EngineStoppedError("the engine was closed" if self.closing else f"the engine failed: {error}")
        )

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Tells all of a batch that have failed."""
        for output in outputs:
            self.deliver(output)


def wake_callers(by_key: Mapping[str, Run]) -> None:
    """Tells callers that something has come: once per event loop and step, not once per token."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Run]] = {}
    for run in list(by_key.values()):
        if run.done or run.request.streaming:
            by_loop.setdefault(run.loop, []).append(run)
    for loop, runs in by_loop.items():
        with suppress(RuntimeError):  # a loop that has been closed has nobody waiting on it
            loop.call_soon_threadsafe(_set_ready, runs)


def _set_ready(runs: list[Run]) -> None:
    for run in runs:
        run.ready.set()
