"""Rollouts: completions sampled from prefixes, many in one batch, through the engine that also serves."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.errors import NotFiniteError
from steering_engine.model import SteeredModel
from steering_pts.closing import Closing
from steering_pts.concurrency import map_concurrently
from steering_pts.settings import SamplerSettings
from steering_spec import Completion, FinishReason, GenerationSpec

_IN_FLIGHT = 512
"""Requests handed to the engine at a time: enough to keep its batch full, few enough to keep memory flat."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One completion to sample.

    Attributes:
        prefix_ids: Prompt and what of the completion is given, at least one id.
        max_tokens: Most tokens to generate.
        seed: Decides the completion, alone or in any batch.
        banned_first_ids: Ids that the first token can't be (stratified alternatives).
        until: Ends the completion early: it is fed each new piece of text, in order, and the completion ends with the
            token whose piece makes it return True. It belongs to this request alone and is used up by it. What it
            raises ends the sampling.
    """

    prefix_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    banned_first_ids: tuple[int, ...] = ()
    until: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled completion: its new ids, and how it ended (STOP_SEQUENCE: its `until` had seen enough)."""

    ids: tuple[int, ...]
    finish_reason: FinishReason

    @property
    def truncated(self) -> bool:
        """Whether it was cut off at its longest length, so that nobody knows how it would have ended."""
        return self.finish_reason is FinishReason.LENGTH


OnDone = Callable[[int, Rollout], None]
"""Hears of a finished rollout, with the index of its request."""


class RolloutSource(Protocol):
    """Samples completions; results come in the order of the requests."""

    def sample(self, requests: Sequence[RolloutRequest], on_done: OnDone | None = None) -> list[Rollout]:
        """Samples all requests; `on_done` hears of every one as it finishes, and what it raises ends the sampling."""
        ...


class ConcurrentRollouts(Closing):
    """A `RolloutSource` that samples each request by itself, many at a time, from synchronous code.

    It owns the event loop that the requests run on.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    @property
    @abstractmethod
    def _at_once(self) -> int:
        """Requests handed over at a time."""

    @abstractmethod
    async def _sample_one(self, request: RolloutRequest) -> Rollout:
        """The rollout of one request."""

    def sample(self, requests: Sequence[RolloutRequest], on_done: OnDone | None = None) -> list[Rollout]:
        """See `RolloutSource.sample`."""

        async def one(numbered: tuple[int, RolloutRequest]) -> Rollout:
            index, request = numbered
            rollout = await self._sample_one(request)
            if on_done is not None:
                on_done(index, rollout)
            return rollout

        return self._runner.run(map_concurrently(one, list(enumerate(requests)), self._at_once))


class EngineRollouts(ConcurrentRollouts):
    """Rollouts through the engine of a `SteeredModel`, which it closes at the end."""

    _at_once = _IN_FLIGHT

    def __init__(self, model: SteeredModel, sampler: SamplerSettings) -> None:
        super().__init__()
        self._model = model
        self._sampler = sampler
        self._count = 0

    def complete(
        self, specs: Sequence[GenerationSpec], on_done: Callable[[int], None] | None = None
    ) -> list[Completion | None]:
        """Completes whole requests, steering included, in the order given; None where steering broke the logits."""

        async def one(spec: GenerationSpec) -> Completion | None:
            try:
                completion = await self._model.generate(spec)
            except NotFiniteError:
                completion = None
            if on_done is not None:
                on_done(len(completion.tokens) if completion else 0)
            return completion

        return self._runner.run(map_concurrently(one, specs, _IN_FLIGHT))

    async def _sample_one(self, request: RolloutRequest) -> Rollout:
        self._count += 1
        engine_request = EngineRequest(
            request_id=f"rollout-{self._count}",
            prompt_ids=request.prefix_ids,
            sampling=Sampling(
                temperature=self._sampler.temperature,
                top_p=self._sampler.top_p,
                top_k=self._sampler.top_k,
                max_tokens=request.max_tokens,
                seed=request.seed,
                min_p=self._sampler.min_p,
            ),
            banned_first_ids=request.banned_first_ids,
            until=request.until,
        )
        ids: list[int] = []
        reason = FinishReason.LENGTH
        async with aclosing(self._model.engine.submit(engine_request)) as chunks:
            async for chunk in chunks:
                ids += [token.id for token in chunk.tokens]
                reason = chunk.finish_reason or reason
        return Rollout(tuple(ids), reason)

    def close(self) -> None:
        """Closes the model and the event loop."""
        try:
            self._runner.run(self._model.close())
        finally:
            self._runner.close()
