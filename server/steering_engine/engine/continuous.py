"""The engine over transformers' continuous batching: paged cache, chunked prefill and prefix sharing come with it.

The engine runs synchronously, without the library's double buffering, so a context trigger sees every token before
the next step. What touches the library itself is in `steering_engine.engine.library`.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from steering_engine.blocks import SteeringHooks, find_blocks
from steering_engine.engine.base import EngineChunk, EngineRequest, EngineStats
from steering_engine.engine.library.manager import BatchManager
from steering_engine.engine.library.states import child_key
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.run import Run
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.engine.text import TextStream
from steering_engine.errors import ModelError, one_line
from steering_engine.loading import LoadedModel
from steering_engine.steering.table import DirectionTable

_SEEDS = 1 << 63  # as many on either side of 0


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
        # Of the runs that are over; those that are running count for themselves until then.
        self._generated = 0
        self._steered = 0
        self._counts = threading.Lock()
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
            raise ModelError(
                f"{type(loaded.model).__name__} can't be run in batches: {one_line(error)}"
            ) from error
        if followers is not None:
            followers.on_loss = self._manager.lose
            followers.check()
            # A program that forgets to close its engine still ends well; torch would abort it, its group being open.
            atexit.register(self._stop)
        self._manager.start()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.submit`."""
        async with aclosing(self.submit_many((request,))) as chunks:
            async for _, chunk in chunks:
                yield chunk

    async def submit_many(
        self, requests: Sequence[EngineRequest], released: Callable[[], None] | None = None
    ) -> AsyncGenerator[tuple[int, EngineChunk], None]:
        """See `Engine.submit_many`."""
        runs: list[Run] = []
        try:
            async with aclosing(self._chunks(requests, runs)) as chunks:
                async for index, chunk in chunks:
                    yield index, chunk
        finally:
            if released is not None:
                # A run that finished has had its last forward; others may be in one.
                keys = [run.key for run in runs if run.finish_reason is None]
                self._manager.when_gone(keys, released)

    async def _chunks(
        self, requests: Sequence[EngineRequest], runs: list[Run]
    ) -> AsyncGenerator[tuple[int, EngineChunk], None]:
        """Runs the requests, whose runs it puts into `runs`."""
        self._check(requests)
        ready = asyncio.Event()
        families = self._families(requests, ready)
        going_on = dict(enumerate((run, family) for family in families for run in family))
        for run, _ in going_on.values():
            self._runs[run.key] = self._running[run.request.request_id] = run
        runs += (run for run, _ in going_on.values())
        try:
            for family in families:
                self._manager.enqueue(family)
            while going_on:
                await ready.wait()
                ready.clear()
                for index, (run, family) in list(going_on.items()):
                    if not (run.done or run.request.streaming):
                        continue
                    chunk = run.take()
                    # Not `run.done`: it may have finished since this chunk was taken, and then another one is due.
                    if chunk.finish_reason is not None or run.cancelled:
                        del going_on[index]
                        self._forget(run, family)
                    if chunk.tokens:
                        yield index, chunk
        finally:
            for run, _ in going_on.values():
                run.cancelled = run.finish_reason is None
            for run, family in going_on.values():
                self._forget(run, family)

    def _families(self, requests: Sequence[EngineRequest], ready: asyncio.Event) -> list[tuple[Run, ...]]:
        """The runs of the requests, in their order: those in one family share the computation of their prompt."""
        if len(requests[0].prompt_ids) == 1:
            # Nothing is left to share of such a prompt: its only row gives the first token.
            return [(self._run(request, self._key(request), ready),) for request in requests]
        first = self._run(requests[0], self._key(requests[0]), ready)
        first.copies = len(requests) - 1
        others = (
            self._run(request, child_key(first.key, number), ready)
            for number, request in enumerate(requests[1:])
        )
        return [(first, *others)]

    def _key(self, request: EngineRequest) -> str:
        # The library takes new requests and cancellations at the same moment, so an id that was cancelled and is used
        # again at once would be cancelled again. Its own ids are never used twice.
        return f"{next(self._counter)}#{request.request_id}"

    def _run(self, request: EngineRequest, key: str, ready: asyncio.Event) -> Run:
        sampling = request.sampling
        text = TextStream(self._loaded.tokenizer, sampling.stop, sampling.min_tokens)
        return Run(request, key, text, asyncio.get_running_loop(), ready)

    def _forget(self, run: Run, family: tuple[Run, ...]) -> None:
        with self._counts:
            del self._runs[run.key], self._running[run.request.request_id]
            self._generated += run.step
            self._steered += run.steered_rows
        if run.finish_reason is None:
            self._manager.cancel(run, family)

    def _check(self, requests: Sequence[EngineRequest]) -> None:
        # What admission sees to for requests from outside; here because such a request would end the engine's thread.
        if not requests:
            raise ValueError("there is no request; expected at least one")
        first, *others = requests
        if any(_shared(other) != _shared(first) for other in others):
            raise ValueError(
                "completions of one prompt may differ in ids, seeds, `until` and `streaming`, and in nothing else"
            )
        ids = [request.request_id for request in requests]
        for request_id in ids:
            if request_id in self._running or ids.count(request_id) > 1:
                raise ValueError(f"request id {request_id!r} is already running")
        if not all(-_SEEDS <= request.sampling.seed < _SEEDS for request in requests):
            raise ValueError(f"seeds must be in [{-_SEEDS}, {_SEEDS})")
        vocab_size = self._loaded.vocab_size
        sampling = first.sampling
        biased = (token_id for token_id, _ in sampling.logit_bias)
        used = (*first.prompt_ids, *first.banned_first_ids, *biased)
        if not first.prompt_ids or min(used) < 0 or max(used) >= vocab_size:
            raise ValueError(f"a prompt needs at least one id, and all ids must be in [0, {vocab_size})")
        room = self._limits.context_tokens(self._loaded.context_tokens)
        asked = len(first.prompt_ids) + sampling.max_tokens
        if sampling.max_tokens < 1 or asked > room:
            raise ValueError(f"prompt and completion together are {asked} tokens; at most {room} fit")
        if sampling.top_logprobs < 0:
            raise ValueError(f"top_logprobs is {sampling.top_logprobs}; expected 0 or more")

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        run = self._running.get(request_id)
        if run is not None:
            run.cancelled = True
            run.wake()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        load = self._manager.load()
        with self._counts:
            runs = list(self._runs.values())  # a loop in another thread may add to them
            generated = self._generated + sum(run.step for run in runs)
            steered = self._steered + sum(run.steered_rows for run in runs)
        return EngineStats(
            active_requests=load.active_requests,
            waiting_requests=load.waiting_requests,
            generated_tokens=generated,
            steered_rows=steered,
            free_cache_tokens=load.free_cache_tokens,
        )

    def failure(self) -> str | None:
        """See `Engine.failure`."""
        return self._manager.failure()

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


def _shared(request: EngineRequest) -> EngineRequest:
    """What completions of one prompt have in common."""
    sampling = replace(request.sampling, seed=0)
    return replace(request, request_id="", sampling=sampling, until=None, streaming=False)
