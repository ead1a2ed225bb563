"""A server beside an engine of the same model in this process: first tokens, streams, and calls that do nothing."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from steering_client import AsyncClient
from steering_engine.model import SteeredModel
from steering_spec import Completion, GenerationSpec, StreamDelta
from tests.bench.engine.batches import throughput
from tests.bench.engine.comparisons import Comparison
from tests.bench.engine.pairs import measure_pair
from tests.bench.engine.traffic import unsteered


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """Seconds from a request to its first token, a pair of numbers for each request.

    Attributes:
        served: Through gRPC.
        engine: In process, parallel to `served`.
    """

    served: tuple[float, ...]
    engine: tuple[float, ...]

    @property
    def summary(self) -> dict[str, float | int]:
        """What gRPC adds, in milliseconds: median and 99th percentile of the pairs' differences, and both medians."""
        added = [1000 * (own - base) for own, base in zip(self.served, self.engine, strict=True)]
        return {
            "median": statistics.median(added),
            "p99": statistics.quantiles(added, n=100, method="inclusive")[-1],
            "pairs": len(added),
            "served_median": 1000 * statistics.median(self.served),
            "engine_median": 1000 * statistics.median(self.engine),
        }


async def first_tokens(model: SteeredModel, client: AsyncClient, pairs: int, tokens: int) -> FirstTokens:
    """One request at a time, through gRPC and in process in turn; each runs to its end before the next one.

    As many pairs again as a tenth of `pairs` come before and aren't counted.
    """
    [spec] = unsteered(model.loaded, 1, tokens)
    served, engine = [], []
    for number in range(-(pairs // 10), pairs):
        own = await _first_token(_through(client, spec))
        base = await _first_token(model.stream(spec))
        if number >= 0:
            served.append(own)
            engine.append(base)
    return FirstTokens(tuple(served), tuple(engine))


async def stream_throughput(
    model: SteeredModel, client: AsyncClient, streams: int, tokens: int, runs: int
) -> Comparison:
    """All streams at once through one connection, against the same ones in process."""
    specs = unsteered(model.loaded, streams, tokens)
    speeds = await measure_pair(
        lambda: _served_throughput(client, specs),
        lambda: throughput(model, specs, streaming=True),
        runs,
    )
    return Comparison(streams, tokens, speeds)


async def calls_per_second(call: Callable[[], Awaitable[object]], calls: int, in_flight: int) -> float:
    """How many calls are answered in a second, when so many are on their way at any moment."""

    async def caller() -> None:
        for _ in range(calls // in_flight):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return calls // in_flight * in_flight / (time.perf_counter() - started)


async def _served_throughput(client: AsyncClient, specs: Sequence[GenerationSpec]) -> float:
    async def one(spec: GenerationSpec) -> int:
        return sum([len(event.tokens) async for event in _through(client, spec)])

    started = time.perf_counter()
    made = await asyncio.gather(*map(one, specs))
    seconds = time.perf_counter() - started
    asked = [spec.sampling.max_tokens for spec in specs]
    if made != asked:
        raise ValueError(f"the streams of a batch brought {made} tokens; expected {asked}")
    return sum(made) / seconds


async def _through(client: AsyncClient, spec: GenerationSpec) -> AsyncIterator[StreamDelta]:
    async with client.stream(spec.prompt, sampling=spec.sampling) as stream:
        async for delta in stream:
            yield delta


async def _first_token(events: AsyncIterator[StreamDelta | Completion]) -> float:
    """Seconds to the first token; the rest is read too."""
    started, seconds = time.perf_counter(), None
    async with aclosing(events) as items:  # type: ignore[type-var]  # both are generators
        async for event in items:
            if seconds is None and isinstance(event, StreamDelta) and event.tokens:
                seconds = time.perf_counter() - started
    if seconds is None:
        raise ValueError("a request ended without a token")
    return seconds
