"""The asyncio client: what `Client` is, awaited."""

# ruff: noqa: ASYNC109 -- a timeout here is the deadline that travels with the call, so that the server stops too

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from steering_client import transport
from steering_client.errors import ConnectionFailedError, DeadlineExceededError, steering_errors
from steering_client.generation import Generation, StreamEvent
from steering_client.prompts import Prompt, Steering
from steering_client.security import Tls, security_of
from steering_client.streams import AsyncCompletionStream
from steering_client.transport import Call, seconds
from steering_spec import Completion, ModelInfo, SamplingParams, ServerStats, VectorInfo

T = TypeVar("T")


class AsyncClient:
    """A connection to a steering server on one event loop; make it while the loop runs.

    Every method may raise a `SteeringError`, and ValueError once the client is closed; `timeout` is in seconds, None
    waits without end. Cancelling the task that awaits a call cancels the call, and the server stops decoding.
    """

    def __init__(
        self, target: str = transport.DEFAULT_TARGET, *, tls: Tls | bool = False, token: str | None = None
    ) -> None:
        """Prepares a connection; see `Client`."""
        security = security_of(target, tls, token)
        options = (*transport.CHANNEL_OPTIONS, *security.options)
        self._target = target
        self._metadata = security.metadata
        self._channel = (
            grpc.aio.insecure_channel(target, options=options)
            if security.credentials is None
            else grpc.aio.secure_channel(target, security.credentials, options=options)
        )

    async def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """See `Client.wait_ready`."""
        try:
            return await self._run(transport.get_model(), timeout, wait_for_ready=True)
        except DeadlineExceededError:
            raise ConnectionFailedError(f"no server answered at {self._target} within {timeout} s") from None

    async def model(self, *, timeout: float | None = None) -> ModelInfo:
        """The served model."""
        return await self._run(transport.get_model(), timeout)

    async def server_stats(self, *, timeout: float | None = None) -> ServerStats:
        """The server's load now, its counts since it started, and its versions."""
        return await self._run(transport.server_stats(), timeout)

    async def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> tuple[int, ...]:
        """The token ids of a prompt; see `Client.tokenize`."""
        return await self._run(transport.tokenize(prompt), timeout)

    async def detokenize(
        self, ids: Iterable[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        """The text of token ids; see `Client.detokenize`."""
        call = transport.detokenize(ids, skip_special_tokens=skip_special_tokens)
        return await self._run(call, timeout)

    async def list_vectors(
        self, *, all_versions: bool = False, timeout: float | None = None
    ) -> list[VectorInfo]:
        """The vectors, ordered by name; see `Client.list_vectors`."""
        page = await self._run(transport.list_vectors("", all_versions=all_versions), timeout)
        found = [*page.vectors]
        while page.next_token:
            page = await self._run(
                transport.list_vectors(page.next_token, all_versions=all_versions), timeout
            )
            found += page.vectors
        return found

    async def get_vector(self, name: str, *, timeout: float | None = None) -> VectorInfo:
        """Describes one vector; see `Client.get_vector`."""
        return await self._run(transport.get_vector(name), timeout)

    async def load_vector(
        self,
        name: str,
        *,
        file: Path | bytes | None = None,
        path_on_server: str | None = None,
        sha256: str = "",
        replace: bool = False,
        timeout: float | None = None,
    ) -> VectorInfo:
        """See `Client.load_vector`; give bytes where reading a file would hold the event loop up."""
        call = transport.load_vector(name, file, path_on_server, sha256, replace=replace)
        return await self._run(call, timeout)

    async def unload_vector(self, name: str, *, timeout: float | None = None) -> VectorInfo:
        """Unloads one version of a vector, and waits for the requests that use it; see `Client.unload_vector`.

        Cancelling the task ends the waiting only: the vector is unloaded all the same.
        """
        return await self._run(transport.unload_vector(name), timeout)

    async def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> Completion:
        """Makes one completion; see `Client.generate`."""
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        return await self._run(generation.one(), timeout)

    async def generate_many(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> tuple[Completion, ...]:
        """Makes the `n` completions that the sampling asks for; see `Client.generate_many`."""
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        return await self._run(generation.all(), timeout)

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> AsyncCompletionStream:
        """Makes what `generate_many` makes and streams it; see `Client.stream`."""
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        call = generation.streamed()
        method: grpc.aio.UnaryStreamMultiCallable[bytes, StreamEvent] = self._channel.unary_stream(
            call.method, response_deserializer=call.read
        )
        with steering_errors():
            running = method(call.request, timeout=seconds(timeout), metadata=self._metadata)
        return AsyncCompletionStream(running, generation.completion_count)

    async def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T], timeout: float | None, *, wait_for_ready: bool = False) -> T:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, T] = self._channel.unary_unary(
            call.method, response_deserializer=call.read
        )
        with steering_errors():
            return await method(
                call.request,
                timeout=seconds(timeout),
                metadata=self._metadata,
                wait_for_ready=wait_for_ready,
            )
