"""Completions through the client: what is measured is what is served. Each is kept as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from steering_client import AsyncClient
from steering_client.errors import (
    ConnectionFailedError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SteeringError,
    UnavailableError,
)
from steering_pts.concurrency import map_concurrently
from steering_pts.credentials import Credentials
from steering_pts.errors import EndpointError
from steering_pts.evaluation.journal import Journal, key_of
from steering_pts.evaluation.samples import BROKEN, Sample, from_json, sample_of, to_json
from steering_pts.progress import RunProgress
from steering_spec import Chat, Completion, ModelInfo, PromptIds, PromptText, SamplingParams, SteeringSpec

IN_FLIGHT: Final = 384
"""Completions that a server is asked for at a time: enough to keep its batch full, far from where it refuses."""
_CONNECT_SECONDS: Final = 10.0
_LONGEST_WAIT_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60.0
"""How long a server may answer nobody before it is given up: a full one makes some wait, but it answers others."""
_TRANSIENT: Final = (UnavailableError, ResourceExhaustedError)
_AGAIN: Final = "the same command goes on where this one stopped"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Completions of one prompt that differ in their seeds alone.

    Attributes:
        prompt: The prompt.
        sampling: How the first of them is drawn; `n` is how many there are, and completion i draws with seed + i.
        steering: How they are steered; None is not at all.
    """

    prompt: PromptText | PromptIds | Chat
    sampling: SamplingParams
    steering: SteeringSpec | None

    def single(self, index: int) -> Wanted:
        """One of them by itself."""
        return replace(self, sampling=self._sampling(index, 1))

    def rest(self, first: int) -> Wanted:
        """Those from one of them on."""
        return replace(self, sampling=self._sampling(first, self.sampling.n - first))

    def _sampling(self, first: int, count: int) -> SamplingParams:
        seed = self.sampling.seed
        return replace(self.sampling, n=count, seed=None if seed is None else seed + first)


class ServedCompletions:
    """Completions that servers make, or have made: those that the journal holds are not made again."""

    def __init__(
        self, targets: Sequence[str], stamp: str, journal: Journal, credentials: Credentials
    ) -> None:
        """Remembers where they come from.

        Args:
            targets: `host:port` of each server that shares the work, at least one; all serve the same.
            stamp: What identifies their model, as far as that is known.
            journal: Keeps them.
            credentials: What the servers let us in with.
        """
        self._targets = tuple(targets)
        self._stamp = stamp
        self._journal = journal
        self._credentials = credentials
        self._answered = monotonic()

    def complete(
        self, wanted: Sequence[Wanted], phase: str, progress: RunProgress
    ) -> list[tuple[Sample, ...]]:
        """All completions, in the order in which they are wanted.

        Raises:
            EndpointError: The server can't be reached, or refuses a request.
            EvaluationError: A completion can't be kept.
        """
        keys = [[self._key(one.single(i)) for i in range(one.sampling.n)] for one in wanted]
        missing = [
            (one.rest(first), own[first:])
            for one, own in zip(wanted, keys, strict=True)
            if (first := next((i for i, key in enumerate(own) if key not in self._journal), None)) is not None
        ]
        total, left = sum(map(len, keys)), sum(len(own) for _, own in missing)
        with progress.phase(phase, total, total - left) as advance:

            def keep(key: str, sample: Sample) -> None:
                if key not in self._journal:
                    self._journal.put(key, to_json(sample))
                advance(len(sample.ids))

            if missing:
                asyncio.run(self._make(missing, keep))
        return [tuple(from_json(self._journal.get(key)) for key in own) for own in keys]

    def _key(self, one: Wanted) -> str:
        return key_of("completion", self._stamp, one.prompt, one.sampling, one.steering)

    async def _make(
        self, missing: Sequence[tuple[Wanted, list[str]]], keep: Callable[[str, Sample], None]
    ) -> None:
        most = max(len(keys) for _, keys in missing)
        self._answered = monotonic()
        async with AsyncExitStack() as connections:
            servers = [
                _Server(target, await connections.enter_async_context(self._credentials.connect(target)))
                for target in self._targets
            ]

            async def make(item: tuple[Wanted, list[str]]) -> None:
                one, keys = item
                for key, sample in zip(keys, await self._ask(servers, one), strict=True):
                    keep(key, sample)

            await map_concurrently(make, missing, max(1, len(servers) * IN_FLIGHT // most))

    async def _ask(self, servers: Sequence[_Server], one: Wanted) -> list[Sample]:
        # The least loaded server first; one that is full or away passes a request on to the next.
        order = sorted(servers, key=lambda server: server.in_flight)
        server = order[0]
        try:
            async for attempt in self._retrying():
                server = order[(attempt.retry_state.attempt_number - 1) % len(order)]
                with attempt:
                    completions = await server.complete(one)
        except InvalidArgumentError as error:
            if error.reason != "NOT_FINITE":
                raise EndpointError(f"{server.target} refused a completion: {error}") from error
            if one.sampling.n == 1:
                return [BROKEN]
            # One of them was steered too strongly; which, only their own requests tell.
            singles = [await self._ask(servers, one.single(index)) for index in range(one.sampling.n)]
            return [sample for (sample,) in singles]
        except _TRANSIENT as error:
            names = " and ".join(self._targets)
            raise EndpointError(f"{names}: no completions come any more ({error}); {_AGAIN}") from error
        except SteeringError as error:
            raise EndpointError(f"{server.target} refused a completion: {error}") from error
        self._answered = monotonic()
        return list(map(sample_of, completions))

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(_TRANSIENT),
            wait=_wait,
            stop=lambda _: monotonic() - self._answered >= _PATIENCE_SECONDS,
            reraise=True,
        )


class _Server:
    """A server, and how much it has been asked for."""

    def __init__(self, target: str, client: AsyncClient) -> None:
        self.target = target
        self.in_flight = 0
        self._client = client

    async def complete(self, one: Wanted) -> tuple[Completion, ...]:
        """Asks for completions; raises what the client raises."""
        self.in_flight += one.sampling.n
        try:
            return await self._client.generate_many(
                one.prompt, sampling=one.sampling, steering=one.steering, steering_trace=True
            )
        finally:
            self.in_flight -= one.sampling.n


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, SteeringError) and error.retry_after is not None:
        return min(error.retry_after, _LONGEST_WAIT_SECONDS)
    return wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS)(state)


def served_model(targets: Sequence[str], credentials: Credentials) -> ModelInfo:
    """What servers serve, which has to be the same.

    Raises:
        EndpointError: One can't be reached, or they serve different models.
    """
    infos = []
    for target in targets:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal():
            raise EndpointError(f"{target!r} is no address of a server; expected HOST:PORT")
        try:
            infos.append(asyncio.run(_model_at(target, credentials)))
        except SteeringError as error:
            named = isinstance(error, ConnectionFailedError)
            raise EndpointError(str(error) if named else f"{target}: {error}") from error
    for target, info in zip(targets, infos, strict=True):
        if info != infos[0]:
            raise EndpointError(f"{target} does not serve what {targets[0]} serves: {info}, not {infos[0]}")
    return infos[0]


async def _model_at(target: str, credentials: Credentials) -> ModelInfo:
    async with credentials.connect(target) as client:
        return await client.wait_ready(timeout=_CONNECT_SECONDS)
