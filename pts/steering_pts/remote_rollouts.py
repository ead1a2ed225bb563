"""Rollouts through running servers: the same requests, the same seeds and so the same ids as through a local engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from steering_client.errors import (
    ConnectionFailedError,
    ResourceExhaustedError,
    SteeringError,
    UnavailableError,
)
from steering_engine.engine.text import TextStream
from steering_engine.model import SteeredModel
from steering_pts.credentials import Credentials
from steering_pts.errors import EndpointError
from steering_pts.rollouts import ConcurrentRollouts, Rollout, RolloutRequest
from steering_pts.settings import SamplerSettings
from steering_spec import FinishReason, ModelInfo, PromptIds, SamplingParams

_IN_FLIGHT_PER_SERVER: Final = 256
"""Requests sent to one server at a time: enough to keep its batch full, far below the number that it refuses at."""
_CONNECT_SECONDS: Final = 10.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60.0
_TRANSIENT: Final = (UnavailableError, ResourceExhaustedError)


class RemoteRollouts(ConcurrentRollouts):
    """Rollouts through steering servers that share the work, from synchronous code; a `RolloutSource`.

    A server that is full or not to be reached is left alone for a while, and its requests go to the others; when it
    has answered nothing for the time of its patience, it is given up for good. `sample` raises EndpointError where no
    server is left, or one refused a request; what was kept of the run can be continued.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: SteeredModel,
        sampler: SamplerSettings,
        patience: float = _PATIENCE_SECONDS,
        credentials: Credentials | None = None,
    ) -> None:
        """Connects, and checks that every server serves the model.

        Args:
            endpoints: `host:port` of each server, at least one.
            model: The model as it is loaded here, for scoring.
            sampler: How completions are drawn.
            patience: Seconds that a server may answer nothing but transient errors.
            credentials: What all servers let us in with; None takes servers that want none.

        Raises:
            EndpointError: A server is not to be reached or serves something else; all such servers at once.
        """
        super().__init__()
        self._sampler = sampler
        self._tokenizer = model.loaded.tokenizer
        self._patience = patience
        self._servers: list[_Server] = []
        try:
            self._runner.run(self._connect(endpoints, model.info, credentials or Credentials()))
        except BaseException:
            self.close()
            raise

    @property
    def _at_once(self) -> int:
        return _IN_FLIGHT_PER_SERVER * len(self._servers)

    async def _connect(self, endpoints: Sequence[str], model: ModelInfo, credentials: Credentials) -> None:
        self._servers = [_Server(endpoint, credentials) for endpoint in dict.fromkeys(endpoints)]
        faults = await asyncio.gather(*(server.faults(model) for server in self._servers))
        if found := [fault for own in faults for fault in own]:
            raise EndpointError("; ".join(found))

    async def _sample_one(self, request: RolloutRequest) -> Rollout:
        end = None if request.until is None else _End(request.until, self._tokenizer)
        while True:
            server = await self._free_server()
            sent = _now()
            try:
                rollout = await server.complete(request, self._sampler, end)
            except _TRANSIENT as error:
                server.pause(error, sent, self._patience)
            except SteeringError as error:
                raise EndpointError(f"{server.endpoint} refused a rollout: {error}") from error
            else:
                server.answered()
                return rollout

    async def _free_server(self) -> _Server:
        """The server with the fewest requests, among those that are not being left alone."""
        while True:
            left = [server for server in self._servers if not server.lost]
            if not left:
                reasons = "; ".join(f"{server.endpoint}: {server.last_error}" for server in self._servers)
                raise EndpointError(
                    f"no server is left ({reasons}); the same command goes on where this one stopped, "
                    "with these servers, other ones or none"
                )
            ready = [server for server in left if server.paused_until <= _now()]
            if ready:
                return min(ready, key=lambda server: server.in_flight)
            await asyncio.sleep(max(0.0, min(server.paused_until for server in left) - _now()))

    def close(self) -> None:
        """Closes the connections and the event loop."""
        try:
            for server in self._servers:
                self._runner.run(server.close())
        finally:
            self._runner.close()


class _Server:
    """One server: its connection, its load, and what is known of its health. Must be made on the running loop."""

    def __init__(self, endpoint: str, credentials: Credentials) -> None:
        self.endpoint = endpoint
        self.in_flight = 0
        self.paused_until = 0.0
        self.lost = False
        self.last_error: SteeringError | None = None
        self._client = credentials.connect(endpoint)
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._silent_since: float | None = None

    async def faults(self, model: ModelInfo) -> list[str]:
        """Why this server can't give what an engine of the model would; empty when it can."""
        host, _, port = self.endpoint.rpartition(":")
        if not host or not port.isdecimal():
            return [f"{self.endpoint!r} is no address of a server; expected HOST:PORT"]
        try:
            served = await self._client.wait_ready(timeout=_CONNECT_SECONDS)
        except SteeringError as error:
            reason = "" if isinstance(error, ConnectionFailedError) else f"{self.endpoint}: "
            return [f"{reason}{error}"]
        pairs = {
            "model configuration": (served.config_digest, model.config_digest),
            "tokenizer": (served.tokenizer_digest, model.tokenizer_digest),
            "dtype": (served.dtype, model.dtype),
        }
        faults = [
            f"{self.endpoint} serves another {what} than the one loaded here: {theirs}, not {ours}"
            for what, (theirs, ours) in pairs.items()
            if theirs != ours
        ]
        theirs, ours = served.facts.max_context_tokens, model.facts.max_context_tokens
        if not faults and theirs < ours:
            faults.append(
                f"{self.endpoint} serves contexts of {theirs} tokens at most; the engine here, and so this run, "
                f"allows {ours} (its --max-context and --cache-tokens decide)"
            )
        return faults

    async def complete(self, request: RolloutRequest, sampler: SamplerSettings, end: _End | None) -> Rollout:
        """Makes one rollout; raises what the client and `end` raise."""
        sampling = replace(
            sampler.params(request.seed),
            max_tokens=request.max_tokens,
            banned_first_ids=request.banned_first_ids,
        )
        self.in_flight += 1
        try:
            if end is not None:
                return await self._stream(PromptIds(request.prefix_ids), sampling, end)
            completion = await self._client.generate(PromptIds(request.prefix_ids), sampling=sampling)
        finally:
            self.in_flight -= 1
        return Rollout(completion.ids, completion.finish_reason)

    async def _stream(self, prompt: PromptIds, sampling: SamplingParams, end: _End) -> Rollout:
        end.begin(self.endpoint)
        ids: list[int] = []
        async with self._client.stream(prompt, sampling=sampling) as stream:  # leaving it stops the decoding
            async for delta in stream:
                for token in delta.tokens:
                    ids.append(token.id)
                    if end.comes_with(token.id):
                        return Rollout(tuple(ids), FinishReason.STOP_SEQUENCE)
            completion = stream.completion
        return Rollout(completion.ids, completion.finish_reason)

    def answered(self) -> None:
        """Notes that it works."""
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._silent_since = None

    def pause(self, error: SteeringError, sent: float, patience: float) -> None:
        """Leaves it alone for a while, twice as long every time; gives it up when its patience has run out.

        Many requests fail together when a server goes away; only one of them, sent since the last pause, counts.
        """
        self.last_error = error
        if sent < self.paused_until:
            return
        now = _now()
        if self._silent_since is None:
            self._silent_since = now
        self.lost = now - self._silent_since >= patience
        self.paused_until = now + max(self._pause_seconds, error.retry_after or 0.0)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()


class _End:
    """Decides, token by token as the engine does, where a request's `until` ends it; over all attempts to make it.

    A server may fail halfway, and `until` can't be rewound: what it has been told already is only compared when the
    next attempt brings it again.
    """

    def __init__(self, until: Callable[[str], bool], tokenizer: Any) -> None:
        self._until = until
        self._tokenizer = tokenizer
        self._told: list[str] = []

    def begin(self, endpoint: str) -> None:
        """A server begins to make the request, from its first token."""
        self._endpoint = endpoint
        self._text = TextStream(self._tokenizer)
        self._pieces = 0

    def comes_with(self, token_id: int) -> bool:
        """Whether the request ends with this token.

        Raises:
            EndpointError: The text is another one than at the last attempt.
        """
        # A delta may bring several tokens, and its text does not say which of them brought what.
        piece = self._text.feed(token_id)
        if not piece:
            return False
        self._pieces += 1
        if self._pieces > len(self._told):
            self._told.append(piece)
            return self._until(piece)
        if piece != self._told[self._pieces - 1]:
            raise EndpointError(
                f"{self._endpoint} gives another text for a rollout that a server before it began and left "
                "unfinished; servers that share a run must run alike (deterministically)"
            )
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()
