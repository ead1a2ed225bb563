"""Every call of the API described once, for the synchronous and the asyncio client. No I/O.

A call is a method's path, a request as bytes, and a function that reads a response; the clients carry it to
the server and back. The only module of this package that knows the generated protobuf code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from steering.v1 import generation_pb2, model_pb2, vector_pb2
from steering_client.errors import InternalError, InvalidArgumentError
from steering_client.prompts import Prompt, Steering, prompt_of, steering_of
from steering_spec import (
    Completion,
    GenerationSpec,
    ModelInfo,
    SamplingParams,
    SteeringAct,
    StreamDelta,
    VectorInfo,
    Violation,
    limits,
    request_violations,
)
from steering_spec.convert.completion import act_from_proto, completion_from_proto, delta_from_proto
from steering_spec.convert.request import generation_spec_to_proto
from steering_spec.convert.resources import model_from_proto, vector_from_proto

DEFAULT_TARGET = "127.0.0.1:50051"

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    # A server that vanished without a word is noticed after 40 s, where a call would wait forever.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own back-off grows to 2 minutes; a server that has just come up should be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A name that stands for several replicas means all of them, where gRPC would stay with the first that answers.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        method: Path of the method, such as `/steering.v1.ModelService/GetModel`.
        request: The serialized request.
        read: Reads one serialized response.
    """

    method: str
    request: bytes
    read: Callable[[bytes], T]


def get_model() -> Call[ModelInfo]:
    """Asks for the served model."""
    request = model_pb2.GetModelRequest()
    return _call(
        "ModelService/GetModel", request, model_pb2.GetModelResponse, lambda r: model_from_proto(r.model)
    )


@dataclass(frozen=True, slots=True)
class VectorPage:
    """One page of vectors, and the token of the next one; empty at the end."""

    vectors: tuple[VectorInfo, ...]
    next_token: str


def list_vectors(page_token: str) -> Call[VectorPage]:
    """Asks for one page of the vectors."""

    def read(response: vector_pb2.ListVectorsResponse) -> VectorPage:
        return VectorPage(tuple(map(vector_from_proto, response.vectors)), response.next_page_token)

    request = vector_pb2.ListVectorsRequest(page_token=page_token)
    return _call("VectorService/ListVectors", request, vector_pb2.ListVectorsResponse, read)


def load_vector(
    name: str, file: Path | bytes | None, path_on_server: str | None, sha256: str
) -> Call[VectorInfo]:
    """Loads a vector from a file of this machine (a path or bytes) or of the server's directory.

    Raises:
        TypeError: Not exactly one of `file` and `path_on_server` was given.
        InvalidArgumentError: The file is too large.
        OSError: The file can't be read.
    """
    if (file is None) == (path_on_server is None):
        raise TypeError("give exactly one of file and path_on_server")
    request = vector_pb2.LoadVectorRequest(name=f"vectors/{name.removeprefix('vectors/')}", sha256=sha256)
    if path_on_server is not None:
        request.path = path_on_server
    if file is not None:
        request.safetensors = file if isinstance(file, bytes) else file.read_bytes()
        if len(request.safetensors) > limits.MAX_VECTOR_FILE_BYTES:
            text = f"{len(request.safetensors)} bytes; at most {limits.MAX_VECTOR_FILE_BYTES} can be sent"
            raise InvalidArgumentError.of([Violation("safetensors", text)])
    return _call(
        "VectorService/LoadVector",
        request,
        vector_pb2.LoadVectorResponse,
        lambda r: vector_from_proto(r.vector),
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate, as callers say it; `Client.generate` describes the fields."""

    prompt: Prompt
    sampling: SamplingParams | None
    steering: Steering | None
    request_id: str
    steering_trace: bool

    @property
    def completion_count(self) -> int:
        """How many completions are asked for."""
        return 1 if self.sampling is None else self.sampling.n

    def one(self) -> Call[Completion]:
        """Asks for one completion in one piece; raises what `all` raises.

        Raises:
            ValueError: Several are asked for.
        """
        if self.completion_count > 1:
            raise ValueError(
                f"generate makes one completion, and n = {self.completion_count} are asked for; use generate_many"
            )
        call = self.all()
        return Call(call.method, call.request, lambda data: call.read(data)[0])

    def all(self) -> Call[tuple[Completion, ...]]:
        """Asks for the completions, each in one piece.

        Raises:
            InvalidArgumentError: Something is wrong; all that can be known without the server, at once.
            TypeError: The prompt is of a type that no prompt has.
        """
        request = generation_pb2.GenerateRequest(spec=self._message())
        return _call(
            "GenerationService/Generate",
            request,
            generation_pb2.GenerateResponse,
            lambda r: tuple(map(completion_from_proto, r.results)),
        )

    def streamed(self) -> Call[StreamEvent]:
        """Asks for the completions as they are decoded; raises what `all` raises."""
        request = generation_pb2.StreamGenerateRequest(spec=self._message())
        return _call(
            "GenerationService/StreamGenerate", request, generation_pb2.StreamGenerateResponse, _stream_event
        )

    def _message(self) -> generation_pb2.GenerationSpec:
        spec = GenerationSpec(
            prompt=prompt_of(self.prompt),
            sampling=self.sampling or SamplingParams(),
            steering=steering_of(self.steering),
            request_id=self.request_id,
            steering_trace=self.steering_trace,
        )
        if faults := request_violations(spec):
            raise InvalidArgumentError.of(faults)
        try:
            return generation_spec_to_proto(spec)
        except ValueError as error:  # a number too large for its field, or a text that is no Unicode
            raise InvalidArgumentError.of([Violation("", str(error))]) from error


@dataclass(frozen=True, slots=True)
class StreamAct:
    """A steering act, and of which completion it is."""

    index: int
    act: SteeringAct


StreamEvent = StreamAct | StreamDelta | Completion | None


def _stream_event(message: generation_pb2.StreamGenerateResponse) -> StreamEvent:
    match message.WhichOneof("event"):
        case "steering_event":
            event = message.steering_event
            return StreamAct(event.completion_index, act_from_proto(event))
        case "delta":
            return delta_from_proto(message.delta)
        case "result":
            return completion_from_proto(message.result)
        case _:  # an event that only newer clients know
            return None


class StreamReader:
    """Joins the events of one stream: the acts of a completion that came before a delta of it are put into it."""

    def __init__(self, completion_count: int) -> None:
        """Reads the stream of so many completions."""
        self._count = completion_count
        self._acts: dict[int, list[SteeringAct]] = {}
        self._completions: dict[int, Completion] = {}

    def read(self, event: StreamEvent) -> StreamDelta | None:
        """The delta that the event completes, if it does."""
        if isinstance(event, StreamAct):
            self._acts.setdefault(event.index, []).append(event.act)
        elif isinstance(event, Completion):
            self._completions[event.index] = event
        elif event is not None:
            return replace(event, acts=tuple(self._acts.pop(event.index, ())))
        return None

    @property
    def completion(self) -> Completion:
        """The completion.

        Raises:
            ValueError: The stream has several.
            InternalError: The stream has not come to its end.
        """
        if self._count > 1:
            raise ValueError(f"the stream has n = {self._count} completions; use completions")
        return self.completions[0]

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The completions, in order.

        Raises:
            InternalError: The stream has not come to its end.
        """
        if len(self._completions) < self._count:
            raise InternalError("the stream has not come to its end, so there is no completion")
        return tuple(self._completions[index] for index in sorted(self._completions))


def _call(method: str, request: Message, response: type[M], read: Callable[[M], T]) -> Call[T]:
    return Call(
        f"/steering.v1.{method}", request.SerializeToString(), lambda data: read(response.FromString(data))
    )
