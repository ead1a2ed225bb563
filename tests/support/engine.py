"""What the tests of the engine share: models that run, requests, and ways to watch an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from steering_engine.engine.base import EngineChunk, EngineRequest
from steering_engine.engine.limits import EngineLimits
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    Completion,
    GenerationSpec,
    PromptIds,
    SamplingParams,
    SteeringRule,
    SteeringSpec,
    StreamDelta,
)
from tests.support.vectors import random_vector

EOS = 1
LETTER = 50  # some token that is a printable character


@contextmanager
def running(folder: Path, **limits: int) -> Iterator[SteeredModel]:
    """A model with the vectors of these tests."""
    model = SteeredModel.load(str(folder), device="cpu", dtype="float32", limits=EngineLimits(**limits))
    loaded = model.loaded
    for vector in (
        random_vector(loaded, "one", [0, 1, 2], seed=1),
        random_vector(loaded, "two", [1], seed=2),
        random_vector(loaded, "endless", [0], seed=4, strength=3e38),
        towards_token(loaded, "end", EOS),
        towards_token(loaded, "letter", LETTER),
    ):
        model.vectors.load(vector.metadata.name, encode_vector(vector))
    try:
        yield model
    finally:
        # In a thread, because some tests are inside a running loop here.
        thread = threading.Thread(target=lambda: asyncio.run(model.close()))
        thread.start()
        thread.join()


def towards_token(loaded: LoadedModel, name: str, token_id: int) -> SteeringVector:
    """A vector that makes a token the most likely one: the token's row of the unembedding, at the last block."""
    block = loaded.block_count - 1
    metadata = random_vector(loaded, name, [block], strength=1000.0).metadata
    row = loaded.model.lm_head.weight[token_id]
    return SteeringVector(metadata, {block: row / row.norm()})


def prompt(length: int, seed: int = 0) -> PromptIds:
    generator = torch.Generator().manual_seed(seed)
    return PromptIds(tuple(torch.randint(2, 258, (length,), generator=generator).tolist()))


def greedy(
    length: int, *rules: SteeringRule, seed: int = 0, tokens: int = 12, **sampling: Any
) -> GenerationSpec:
    return GenerationSpec(
        prompt(length, seed),
        SamplingParams(temperature=0, max_tokens=tokens, **sampling),
        SteeringSpec(rules) if rules else None,
        steering_trace=True,
    )


def sampled(length: int, *rules: SteeringRule, seed: int = 0, tokens: int = 12) -> GenerationSpec:
    spec = greedy(length, *rules, seed=seed, tokens=tokens)
    return replace(spec, sampling=SamplingParams(temperature=1.0, max_tokens=tokens, seed=seed))


async def together(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[Completion]:
    return list(await asyncio.gather(*(model.generate(spec) for spec in specs)))


class Pieces:
    """An `until` that has seen enough after so many pieces of text."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pieces: list[str] = []

    def __call__(self, piece: str) -> bool:
        self.pieces.append(piece)
        return len(self.pieces) == self.most


def engine_request(model: SteeredModel, spec: GenerationSpec, request_id: str) -> EngineRequest:
    """The engine's request for a spec, through end-of-sequence tokens."""
    (request,) = model._requests(spec, request_id, model.vectors.lease(), streaming=False)
    return replace(request, sampling=replace(request.sampling, stop_at_eos=False))


async def engine_result(model: SteeredModel, request: EngineRequest) -> EngineChunk:
    """The one chunk of a request that is not streamed."""
    (chunk,) = [chunk async for chunk in model.engine.submit(request)]
    return chunk


def ids_of(chunk: EngineChunk) -> list[int]:
    return [token.id for token in chunk.tokens]


def processor(model: SteeredModel) -> Any:
    return model.engine._manager.batch_processor  # type: ignore[attr-defined]


def forget_pages(model: SteeredModel) -> None:
    """Empties the cache of pages that are kept for sharing; for an idle engine."""
    processor(model).cache.evict_cached_blocks()


async def idle(model: SteeredModel) -> None:
    for _ in range(1000):
        stats = model.stats()
        if not stats.active_requests and not stats.waiting_requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine did not come to rest")


async def busy(model: SteeredModel) -> None:
    for _ in range(10_000):
        if model.stats().active_requests:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the engine did not begin")


async def collect(model: SteeredModel, spec: GenerationSpec) -> tuple[list[StreamDelta], Completion]:
    deltas: list[StreamDelta] = []
    async with aclosing(model.stream(spec)) as events:
        async for event in events:
            if isinstance(event, Completion):
                return deltas, event
            deltas.append(event)
    raise AssertionError("the stream ended without a completion")


class HeldForward:
    """Holds the engine's thread before one of its next forwards, by its number, until the block is left."""

    def __init__(self, model: SteeredModel, number: int = 1) -> None:
        self._runner = processor(model).model_runner
        self._left = number
        self._begun = threading.Event()
        self._go = threading.Event()

    def __enter__(self) -> Self:
        compute_batch = self._runner.compute_batch

        def hold(*args: Any) -> None:
            self._left -= 1
            if self._left == 0:
                self._begun.set()
                self._go.wait()
                self._runner.compute_batch = compute_batch
            compute_batch(*args)

        self._runner.compute_batch = hold
        return self

    async def begun(self) -> None:
        """Waits for that forward."""
        assert await asyncio.to_thread(self._begun.wait, 10), "no forward began"

    def __exit__(self, *_: object) -> None:
        self._go.set()
