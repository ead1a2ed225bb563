"""The engine over transformers' continuous batching: paged cache, chunked prefill and prefix sharing come with it.

The engine runs synchronously, without the library's double buffering, so a context trigger sees every token before
the next step. What touches the library itself is in `steering_engine.engine.library`.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
from collections.abc import AsyncGenerator

from steering_engine.blocks import SteeringHooks, find_blocks
from steering_engine.engine.base import EngineChunk, EngineRequest, EngineStats
from steering_engine.engine.library import BatchManager
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.run import Run
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.engine.text import TextStream
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel
from steering_engine.steering.table import DirectionTable


class ContinuousEngine:
    """`Engine` over continuous batching. One model, one background thread; see `steering_engine.engine.base`."""

    def __init__(
        self,
        loaded: LoadedModel,
        table: DirectionTable,
        limits: EngineLimits,
        followers: Followers | None = None,
    ) -> None:
        """Prepares the model and starts the engine's thread.

        Args:
            loaded: The model.
            table: The directions that plans refer to.
            limits: Bounds.
            followers: The other processes that share the model; closing the engine closes them.

        Raises:
            ModelError: The library's continuous batching can't run this model.
        """
        self._loaded = loaded
        self._limits = limits
        self._followers = followers
        self._runs: dict[str, Run] = {}  # by key
        self._running: dict[str, Run] = {}  # by the request's own id
        self._counter = itertools.count()
        self._stop_lock = threading.Lock()
        self._generated = 0
        self._steered = 0
        self._hooks = SteeringHooks(find_blocks(loaded.model), table)
        self._attention = loaded.model.config._attn_implementation  # noqa: SLF001
        try:
            self._manager = BatchManager(loaded, self._hooks, self._runs, limits, followers)
            self._manager.try_model()
        except ModelError:
            self._restore_model()
            raise
        except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, MemoryError) as error:
            self._restore_model()
            raise ModelError(f"{type(loaded.model).__name__} can't be run in batches: {error}") from error
        if followers is not None:
            followers.on_loss = self._manager.lose
            followers.check()
            # A program that forgets to close its engine still ends well; torch would abort it, its group being open.
            atexit.register(self._stop)
        self._manager.start()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.submit`."""
        self._check(request)
        # The library takes new requests and cancellations at the same moment, so an id that was cancelled and is used
        # again at once would be cancelled again. Its own ids are never used twice.
        key = f"{request.request_id}#{next(self._counter)}"
        text = TextStream(self._loaded.tokenizer, request.sampling.stop)
        run = Run(request, key, text, asyncio.get_running_loop())
        self._runs[key] = self._running[request.request_id] = run
        try:
            self._manager.enqueue(run)
            while True:
                await run.ready.wait()
                run.ready.clear()
                chunk = run.take()
                self._generated += len(chunk.tokens)
                if chunk.tokens:
                    yield chunk
                # Not `run.done`: the run may have finished since this chunk was taken, and then another one is due.
                if chunk.finish_reason is not None or run.cancelled:
                    return
        finally:
            del self._runs[key], self._running[request.request_id]
            self._steered += run.steered_rows
            if run.finish_reason is None:
                self._manager.cancel_request(key)

    def _check(self, request: EngineRequest) -> None:
        # What admission sees to for requests from outside; here because such a request would end the engine's thread.
        if request.request_id in self._running:
            raise ValueError(f"request id {request.request_id!r} is already running")
        vocab_size = self._loaded.vocab_size
        used = (*request.prompt_ids, *request.banned_first_ids)
        if not request.prompt_ids or min(used) < 0 or max(used) >= vocab_size:
            raise ValueError(f"a prompt needs at least one id, and all ids must be in [0, {vocab_size})")
        room = self._limits.context_tokens(self._loaded.context_tokens)
        asked = len(request.prompt_ids) + request.sampling.max_tokens
        if request.sampling.max_tokens < 1 or asked > room:
            raise ValueError(f"prompt and completion together are {asked} tokens; at most {room} fit")

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        run = self._running.get(request_id)
        if run is not None:
            run.cancelled = True
            run.wake()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        load = self._manager.load()
        return EngineStats(
            active_requests=load.active_requests,
            waiting_requests=load.waiting_requests,
            generated_tokens=self._generated,
            steered_rows=self._steered,
            free_cache_tokens=load.free_cache_tokens,
        )

    async def close(self) -> None:
        """See `Engine.close`."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._stop_lock:
            self._manager.end()
            if self._followers is not None:
                self._followers.close()
                atexit.unregister(self._stop)
            self._restore_model()

    def _restore_model(self) -> None:
        self._hooks.remove()
        if self._loaded.model.config._attn_implementation != self._attention:  # noqa: SLF001
            self._loaded.model.set_attn_implementation(self._attention)
