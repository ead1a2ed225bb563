"""Batches that differ in one thing each, compared on one engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import GenerationSpec
from tests.bench.engine.batches import complete, steer, throughput
from tests.bench.engine.pairs import Speeds, measure_pair
from tests.bench.engine.traffic import (
    contexts_like,
    every_step,
    never_firing,
    prompts,
    steered_blocks,
    unsteered,
)
from tests.support.vectors import random_vector

_STRENGTH = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is compared.

    Attributes:
        tokens: Tokens that each request generates.
        requests: Requests of a batch.
        many: Requests, and distinct vectors, of the batch that is compared with one of a single vector.
        contexts: Pivot contexts of the vector that waits for one.
        runs: Pairs of timed runs.
    """

    tokens: int
    requests: int = 32
    many: int = 64
    contexts: int = 5_000
    runs: int = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared: batches of so many requests, each of so many generated tokens, and how fast they were."""

    requests: int
    tokens: int
    speeds: Speeds


async def steered_over_unsteered(model: SteeredModel, sizes: Sizes) -> Comparison:
    """Each request with a vector of its own at three blocks and every step, against the same requests unsteered."""
    plain = unsteered(model.loaded, sizes.requests, sizes.tokens)
    return await _compare(model, _each_its_own(model, plain), plain, sizes)


async def k64_over_k1(model: SteeredModel, sizes: Sizes) -> Comparison:
    """Each request with a vector of its own, against the same requests that all have one vector."""
    plain = unsteered(model.loaded, sizes.many, sizes.tokens)
    alike = steer(plain, [every_step(_vector(model, 0))] * len(plain))
    return await _compare(model, _each_its_own(model, plain), alike, sizes)


async def trace_on_over_off(model: SteeredModel, sizes: Sizes) -> Comparison:
    """Steered requests whose acts are told, against the same ones whose acts aren't; both are streamed."""
    quiet = _each_its_own(model, unsteered(model.loaded, sizes.requests, sizes.tokens))
    traced = [replace(spec, steering_trace=True) for spec in quiet]
    return await _compare(model, traced, quiet, sizes, streaming=True)


async def context_trigger_overhead(model: SteeredModel, sizes: Sizes) -> Comparison:
    """Requests whose vector waits for a pivot context at every step and never finds one, against unsteered ones."""
    plain = unsteered(model.loaded, sizes.requests, sizes.tokens)
    completions = await complete(model, plain)
    starts = prompts(model.loaded.vocab_size, sizes.requests)
    histories = [(*prompt, *completion.ids) for prompt, completion in zip(starts, completions, strict=True)]
    contexts = contexts_like(histories, sizes.contexts, model.loaded.vocab_size)
    waiting = steer(plain, [never_firing(_vector(model, 0, contexts))] * len(plain))
    return await _compare(model, waiting, plain, sizes)


COMPARISONS: Final[Mapping[str, Callable[[SteeredModel, Sizes], Awaitable[Comparison]]]] = {
    one.__name__: one
    for one in (steered_over_unsteered, k64_over_k1, trace_on_over_off, context_trigger_overhead)
}


async def deterministic_over_fast(
    deterministic: SteeredModel, fast: SteeredModel, requests: int, sizes: Sizes
) -> Comparison:
    """The same unsteered requests on an engine that computes rows with the same bits in any batch, and on one not."""
    plain = unsteered(fast.loaded, requests, sizes.tokens)
    speeds = await measure_pair(
        lambda: throughput(deterministic, plain), lambda: throughput(fast, plain), sizes.runs
    )
    return Comparison(requests, sizes.tokens, speeds)


async def _compare(
    model: SteeredModel,
    changed: Sequence[GenerationSpec],
    baseline: Sequence[GenerationSpec],
    sizes: Sizes,
    *,
    streaming: bool = False,
) -> Comparison:
    speeds = await measure_pair(
        lambda: throughput(model, changed, streaming=streaming),
        lambda: throughput(model, baseline, streaming=streaming),
        sizes.runs,
    )
    return Comparison(len(changed), sizes.tokens, speeds)


def _each_its_own(model: SteeredModel, plain: Sequence[GenerationSpec]) -> list[GenerationSpec]:
    return steer(plain, [every_step(_vector(model, number)) for number in range(len(plain))])


def _vector(model: SteeredModel, number: int, contexts: Sequence[Sequence[int]] = ()) -> str:
    """The name of a random vector at three blocks, loaded if it is not."""
    name = f"{'waiting' if contexts else 'vector'}-{number}"
    blocks = steered_blocks(model.loaded.block_count)
    vector = random_vector(model.loaded, name, blocks, seed=number, strength=_STRENGTH, contexts=contexts)
    model.vectors.load(name, encode_vector(vector))
    return name
