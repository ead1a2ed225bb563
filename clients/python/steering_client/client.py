"""The synchronous client."""

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
from steering_client.streams import CompletionStream
from steering_client.transport import Call, seconds
from steering_spec import Completion, ModelInfo, SamplingParams, ServerStats, VectorInfo

T = TypeVar("T")


class Client:
    """A connection to a steering server, for any number of threads.

    Every method may raise a `SteeringError`, and ValueError once the client is closed; `timeout` is in seconds, None
    waits without end.
    """

    def __init__(
        self, target: str = transport.DEFAULT_TARGET, *, tls: Tls | bool = False, token: str | None = None
    ) -> None:
        """Prepares a connection; it is made when the first call needs it.

        Args:
            target: `host:port`.
            tls: Encrypt, and know the server by its certificate; True trusts the authorities that gRPC ships.
            token: Bearer token, sent with every call; only over TLS, or to this machine.

        Raises:
            ValueError: The token can't be one, or would travel to another machine unencrypted.
            OSError: A file of `tls` can't be read.
        """
        security = security_of(target, tls, token)
        options = (*transport.CHANNEL_OPTIONS, *security.options)
        self._target = target
        self._metadata = security.metadata
        self._channel = (
            grpc.insecure_channel(target, options=options)
            if security.credentials is None
            else grpc.secure_channel(target, security.credentials, options=options)
        )

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """Waits until the server answers; it listens only once its model is loaded.

        Returns:
            The served model.

        Raises:
            ConnectionFailedError: No server answered within the timeout.
        """
        try:
            return self._run(transport.get_model(), timeout, wait_for_ready=True)
        except DeadlineExceededError:
            raise ConnectionFailedError(f"no server answered at {self._target} within {timeout} s") from None

    def model(self, *, timeout: float | None = None) -> ModelInfo:
        """The served model."""
        return self._run(transport.get_model(), timeout)

    def server_stats(self, *, timeout: float | None = None) -> ServerStats:
        """The server's load now, its counts since it started, and its versions."""
        return self._run(transport.server_stats(), timeout)

    def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> tuple[int, ...]:
        """The token ids that generation would use for a prompt.

        Args:
            prompt: A string as it stands, or chat messages; it may be longer than the model's context.
            timeout: Seconds.

        Raises:
            InvalidArgumentError: The prompt is too long, or no text.
            TypeError: The prompt is token ids already.
        """
        return self._run(transport.tokenize(prompt), timeout)

    def detokenize(
        self, ids: Iterable[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        """The text of token ids.

        Args:
            ids: The ids.
            skip_special_tokens: Leave special tokens out, as the text of a completion does.
            timeout: Seconds.

        Raises:
            InvalidArgumentError: There are too many, or some are none of the model's.
        """
        call = transport.detokenize(ids, skip_special_tokens=skip_special_tokens)
        return self._run(call, timeout)

    def list_vectors(self, *, all_versions: bool = False, timeout: float | None = None) -> list[VectorInfo]:
        """The current version of every vector, ordered by name; the timeout is for each page.

        Args:
            all_versions: List all versions of each name, the current one first.
            timeout: Seconds.
        """
        page = self._run(transport.list_vectors("", all_versions=all_versions), timeout)
        found = [*page.vectors]
        while page.next_token:
            page = self._run(transport.list_vectors(page.next_token, all_versions=all_versions), timeout)
            found += page.vectors
        return found

    def get_vector(self, name: str, *, timeout: float | None = None) -> VectorInfo:
        """Describes one vector.

        Args:
            name: `vectors/{id}` or the id alone, for the current version; or either with `@{sha256}`.
            timeout: Seconds.

        Raises:
            NotFoundError: It is not loaded.
        """
        return self._run(transport.get_vector(name), timeout)

    def load_vector(
        self,
        name: str,
        *,
        file: Path | bytes | None = None,
        path_on_server: str | None = None,
        sha256: str = "",
        replace: bool = False,
        timeout: float | None = None,
    ) -> VectorInfo:
        """Loads a vector so that requests may name it; the same file and name again change nothing.

        The server keeps it until it is unloaded or the server ends; after a restart only the server's own directory
        is loaded again.

        Args:
            name: `vectors/{id}`, or the id alone.
            file: A file of this machine, or its bytes; or else
            path_on_server: a path in the server's vector directory, relative to it.
            sha256: Expected digest of the file, lowercase hex; empty checks none.
            replace: Make the file the current version though the name has another one, which stays loaded as
                `vectors/{id}@{sha256}`; requests that run keep what they began with.
            timeout: Seconds.

        Raises:
            AlreadyExistsError: The name has another file, and `replace` is not set.
            FailedPreconditionError: The vector was made for another model.
            ResourceExhaustedError: There is no room for it.
        """
        call = transport.load_vector(name, file, path_on_server, sha256, replace=replace)
        return self._run(call, timeout)

    def unload_vector(self, name: str, *, timeout: float | None = None) -> VectorInfo:
        """Unloads one version of a vector, and waits until the requests that use it have ended.

        New requests don't find it from the first moment on. Where the timeout passes, it is unloaded all the same, and
        its memory is free when the last of those requests ends.

        Args:
            name: `vectors/{id}` or the id alone, for the current version; or either with `@{sha256}`.
            timeout: Seconds.

        Returns:
            What was unloaded, as it was then.

        Raises:
            NotFoundError: It is not loaded.
            FailedPreconditionError: The server's default steering uses it.
            DeadlineExceededError: Requests that use it still ran when the timeout had passed.
        """
        return self._run(transport.unload_vector(name), timeout)

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> Completion:
        """Makes one completion.

        Args:
            prompt: A string as it stands, token ids, or chat messages.
            sampling: How tokens are chosen; None means the defaults of every field.
            steering: A spec, one rule, or several; None means as the server does by default, () not at all.
            request_id: Id for the server's log; empty lets the server choose.
            steering_trace: Report each steering act.
            timeout: Seconds; the server stops decoding when they have passed.

        Raises:
            InvalidArgumentError: The request is wrong; `.violations` says everything that is.
            ValueError: The sampling asks for several completions; `generate_many` makes them.
        """
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        return self._run(generation.one(), timeout)

    def generate_many(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> tuple[Completion, ...]:
        """Makes the `n` completions that the sampling asks for, in order; completion i draws with seed + i.

        The prompt is computed once for all of them. The other arguments and errors are those of `generate`.
        """
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        return self._run(generation.all(), timeout)

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        steering: Steering | None = None,
        request_id: str = "",
        steering_trace: bool = False,
        timeout: float | None = None,
    ) -> CompletionStream:
        """Makes what `generate_many` makes and streams it; of several completions every delta tells its `index`.

        The arguments and errors are those of `generate_many`.
        """
        generation = Generation(prompt, sampling, steering, request_id, steering_trace)
        call = generation.streamed()
        method: grpc.UnaryStreamMultiCallable[bytes, StreamEvent] = self._channel.unary_stream(
            call.method, response_deserializer=call.read
        )
        return CompletionStream(
            method(call.request, timeout=seconds(timeout), metadata=self._metadata),
            generation.completion_count,
        )

    def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T], timeout: float | None, *, wait_for_ready: bool = False) -> T:
        method: grpc.UnaryUnaryMultiCallable[bytes, T] = self._channel.unary_unary(
            call.method, response_deserializer=call.read
        )
        with steering_errors():
            return method(
                call.request,
                timeout=seconds(timeout),
                metadata=self._metadata,
                wait_for_ready=wait_for_ready,
            )
