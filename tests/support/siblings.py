"""Completions of one prompt for tests: their requests, and their results together and each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steering_engine.engine.base import EngineChunk, EngineRequest
from steering_engine.model import SteeredModel
from steering_spec import GenerationSpec
from tests.support.engine import engine_request, engine_result, forget_pages, idle

COUNT = 8


def requests_of(model: SteeredModel, spec: GenerationSpec, count: int = COUNT) -> list[EngineRequest]:
    """Requests for completions of one prompt, with seeds of their own."""
    first = engine_request(model, spec, "first")
    return [
        replace(first, request_id=f"sibling {n}", sampling=replace(first.sampling, seed=100 + n))
        for n in range(count)
    ]


async def one_by_one(model: SteeredModel, requests: Sequence[EngineRequest]) -> list[EngineChunk]:
    """Each request alone, with nothing in the cache."""
    found = []
    for request in requests:
        forget_pages(model)
        found.append(await engine_result(model, request))
    await idle(model)
    forget_pages(model)
    return found


async def siblings(model: SteeredModel, requests: Sequence[EngineRequest]) -> list[EngineChunk]:
    """All of them at once, with one prefill."""
    found = {index: chunk async for index, chunk in model.engine.submit_many(requests)}
    return [found[index] for index in range(len(requests))]


def told(chunks: Sequence[EngineChunk]) -> list[object]:
    """All of some results but their times: tokens with the bits of their log-probabilities, text, acts, reason."""
    return [(chunk.tokens, chunk.text, chunk.acts, chunk.finish_reason) for chunk in chunks]
