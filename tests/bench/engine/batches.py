"""Running a batch: all requests at once through the model's own door, timed until the last one is done."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from contextlib import aclosing

from steering_engine.model import SteeredModel
from steering_spec import Completion, GenerationSpec, SteeringSpec


def steer(specs: Sequence[GenerationSpec], steering: Sequence[SteeringSpec]) -> list[GenerationSpec]:
    """The same requests, each with its steering."""
    return [dataclasses.replace(spec, steering=own) for spec, own in zip(specs, steering, strict=True)]


async def complete(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[Completion]:
    """The completions of a batch."""
    return await asyncio.gather(*(model.generate(spec) for spec in specs))


async def throughput(
    model: SteeredModel, specs: Sequence[GenerationSpec], *, streaming: bool = False
) -> float:
    """Tokens per second of a batch, from before the first request is admitted to after the last one's last token.

    Raises:
        ValueError: A request ended before its length, so the batch is not what it is compared with.
    """
    started = time.perf_counter()
    completions = await (_stream(model, specs) if streaming else complete(model, specs))
    seconds = time.perf_counter() - started
    made = [len(completion.tokens) for completion in completions]
    asked = [spec.sampling.max_tokens for spec in specs]
    if made != asked:
        raise ValueError(f"the requests of a batch generated {made} tokens; expected {asked}")
    return sum(made) / seconds


async def _stream(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[Completion]:
    async def one(spec: GenerationSpec) -> Completion:
        async with aclosing(model.stream(spec)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise ValueError("a request was cancelled")

    return await asyncio.gather(*map(one, specs))
