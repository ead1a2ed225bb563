"""Requests handed to the engine itself, and what its sampler was given for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.engine.limits import EngineLimits
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_engine.steering.compile import compile_plan
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.schema import SteeringVector
from steering_spec import SteeringAct, SteeringSpec, Token
from tests.support.engine import processor


@dataclass(frozen=True)
class Got:
    """What a request gave, up to its end or to where its reader left."""

    tokens: tuple[Token, ...]
    acts: tuple[SteeringAct, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def logprobs(self) -> list[float]:
        return [token.logprob for token in self.tokens]


def engine_with(loaded: LoadedModel, vectors: Mapping[str, SteeringVector], **limits: Any) -> SteeredModel:
    """A running engine that has these vectors."""
    model = SteeredModel(loaded, "tiny", EngineLimits(**{"vector_table_bytes": 1 << 20, **limits}))
    for name, vector in vectors.items():
        model.vectors.load(name, encode_vector(vector))
    return model


@asynccontextmanager
async def running_engine(
    loaded: LoadedModel, vectors: Mapping[str, SteeringVector], **limits: Any
) -> AsyncIterator[SteeredModel]:
    """The same, closed at the end."""
    model = engine_with(loaded, vectors, **limits)
    try:
        yield model
    finally:
        await model.close()


def request(
    model: SteeredModel,
    name: str,
    prompt: Sequence[int],
    steering: SteeringSpec | None = None,
    *,
    tokens: int = 12,
    temperature: float = 0.0,
    seed: int = 0,
    streaming: bool = False,
) -> EngineRequest:
    """A request of this name, compiled against the model's vectors."""
    plan = compile_plan(steering, model.vectors, prompt) if steering is not None and steering.rules else None
    sampling = Sampling(temperature, 1.0, 0, tokens, seed)
    return EngineRequest(name, tuple(prompt), sampling, plan, streaming=streaming, trace=True)


async def get(model: SteeredModel, asked: EngineRequest, *, leave_after: int | None = None) -> Got:
    """What the request gives; its reader leaves after so many tokens, which takes a request that streams."""
    tokens: list[Token] = []
    acts: list[SteeringAct] = []
    async with aclosing(model.engine.submit(asked)) as chunks:
        async for chunk in chunks:
            tokens += chunk.tokens
            acts += chunk.acts
            if leave_after is not None and len(tokens) >= leave_after:
                break
    return Got(tuple(tokens), tuple(acts))


async def get_copies(model: SteeredModel, asked: EngineRequest, count: int) -> list[Got]:
    """What so many completions of one prompt give, the seed of each being the one after that of the one before."""
    requests = [
        replace(
            asked,
            request_id=f"{asked.request_id}.{number}",
            sampling=replace(asked.sampling, seed=asked.sampling.seed + number),
        )
        for number in range(count)
    ]
    found = [Got((), ())] * count
    async with aclosing(model.engine.submit_many(requests)) as chunks:
        async for number, chunk in chunks:
            before = found[number]
            found[number] = Got((*before.tokens, *chunk.tokens), (*before.acts, *chunk.acts))
    return found


async def get_all(model: SteeredModel, requests: Sequence[EngineRequest]) -> list[Got]:
    """What they give, submitted together."""
    return list(await asyncio.gather(*(get(model, one) for one in requests)))


@contextmanager
def watched_logits(model: SteeredModel) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Rows of logits `[vocab]` as the sampler gets them, by the request's id: one for each step, in order."""
    runner = processor(model).model_runner
    sample = runner._sample
    found: dict[str, list[torch.Tensor]] = {}

    def note(scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        for row, run in enumerate(runner.runs):
            of_request = found.setdefault(run.request.request_id, [])
            assert run.step == len(of_request), "a step was sampled twice or passed over"
            of_request.append(scores[0, row].clone())
        sample(scores, output_ids)

    runner._sample = note
    try:
        yield found
    finally:
        runner._sample = sample
