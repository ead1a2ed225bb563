"""Every call of the API described once, for the synchronous and the asyncio client. No I/O.

A call is a method's path, a request as bytes, and a function that reads a response; the clients carry it to
the server and back. Only this module and `generation` know the generated protobuf code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from steering.v1 import model_pb2, vector_pb2
from steering_client.errors import InvalidArgumentError
from steering_client.prompts import Prompt, prompt_of
from steering_spec import (
    DetokenizeSpec,
    ModelInfo,
    PromptIds,
    ServerStats,
    TokenizeSpec,
    VectorInfo,
    Violation,
    limits,
)
from steering_spec.convert.resources import model_from_proto, vector_from_proto
from steering_spec.convert.stats import stats_from_proto
from steering_spec.convert.tokenizing import detokenize_to_proto, tokenize_to_proto
from steering_spec.tokenizing_admission import detokenize_violations, tokenize_violations

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

# gRPC takes a deadline that its clock can't hold, infinity for one, for a deadline that has passed.
_WITHOUT_END = 1e9

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


def seconds(timeout: float | None) -> float | None:
    """A timeout as gRPC takes it; decades are as good as None."""
    return None if timeout is not None and timeout > _WITHOUT_END else timeout


def get_model() -> Call[ModelInfo]:
    """Asks for the served model."""
    request = model_pb2.GetModelRequest()
    return make_call(
        "ModelService/GetModel", request, model_pb2.GetModelResponse, lambda r: model_from_proto(r.model)
    )


def server_stats() -> Call[ServerStats]:
    """Asks how the server is."""
    request = model_pb2.GetServerStatsRequest()
    return make_call(
        "ModelService/GetServerStats",
        request,
        model_pb2.GetServerStatsResponse,
        lambda r: stats_from_proto(r.stats),
    )


def tokenize(prompt: Prompt) -> Call[tuple[int, ...]]:
    """Asks for the ids of a text or a chat.

    Raises:
        InvalidArgumentError: Something is wrong; all that can be known without the server, at once.
        TypeError: The prompt is ids already, or of a type that no prompt has.
    """
    given = prompt_of(prompt)
    if isinstance(given, PromptIds):
        raise TypeError("token ids are no text; give a string or chat messages")
    spec = TokenizeSpec(given)
    if faults := tokenize_violations(spec):
        raise InvalidArgumentError.of(faults)
    request = tokenize_to_proto(spec)
    return make_call("ModelService/Tokenize", request, model_pb2.TokenizeResponse, lambda r: tuple(r.ids))


def detokenize(ids: Iterable[int], *, skip_special_tokens: bool) -> Call[str]:
    """Asks for the text of ids.

    Raises:
        InvalidArgumentError: Something is wrong; all that can be known without the server, at once.
    """
    spec = DetokenizeSpec(tuple(map(operator.index, ids)), skip_special_tokens)
    if faults := detokenize_violations(spec):
        raise InvalidArgumentError.of(faults)
    request = detokenize_to_proto(spec)
    return make_call("ModelService/Detokenize", request, model_pb2.DetokenizeResponse, lambda r: r.text)


@dataclass(frozen=True, slots=True)
class VectorPage:
    """One page of vectors, and the token of the next one; empty at the end."""

    vectors: tuple[VectorInfo, ...]
    next_token: str


def list_vectors(page_token: str, *, all_versions: bool) -> Call[VectorPage]:
    """Asks for one page of the vectors."""

    def read(response: vector_pb2.ListVectorsResponse) -> VectorPage:
        return VectorPage(tuple(map(vector_from_proto, response.vectors)), response.next_page_token)

    request = vector_pb2.ListVectorsRequest(page_token=page_token, all_versions=all_versions)
    return make_call("VectorService/ListVectors", request, vector_pb2.ListVectorsResponse, read)


def get_vector(name: str) -> Call[VectorInfo]:
    """Asks for one vector."""
    request = vector_pb2.GetVectorRequest(name=_vector_name(name))
    return make_call("VectorService/GetVector", request, vector_pb2.GetVectorResponse, _told_vector)


def load_vector(
    name: str, file: Path | bytes | None, path_on_server: str | None, sha256: str, *, replace: bool
) -> Call[VectorInfo]:
    """Loads a vector from a file of this machine (a path or bytes) or of the server's directory.

    Raises:
        TypeError: Not exactly one of `file` and `path_on_server` was given, or `file` is neither a path nor bytes.
        InvalidArgumentError: The file is too large.
        OSError: The file can't be read.
    """
    if (file is None) == (path_on_server is None):
        raise TypeError("give exactly one of file and path_on_server")
    # A string least of all: it might be meant for the server's directory.
    if not isinstance(file, Path | bytes | None):
        raise TypeError(f"file is a Path of this machine, or bytes; got {type(file).__name__} {file!r:.80}")
    request = vector_pb2.LoadVectorRequest(name=_vector_name(name), sha256=sha256, replace=replace)
    if path_on_server is not None:
        request.path = path_on_server
    if file is not None:
        request.safetensors = file if isinstance(file, bytes) else file.read_bytes()
        if len(request.safetensors) > limits.MAX_VECTOR_FILE_BYTES:
            text = f"{len(request.safetensors)} bytes; at most {limits.MAX_VECTOR_FILE_BYTES} can be sent"
            raise InvalidArgumentError.of([Violation("safetensors", text)])
    return make_call("VectorService/LoadVector", request, vector_pb2.LoadVectorResponse, _told_vector)


def unload_vector(name: str) -> Call[VectorInfo]:
    """Unloads one version of a vector."""
    request = vector_pb2.UnloadVectorRequest(name=_vector_name(name))
    return make_call("VectorService/UnloadVector", request, vector_pb2.UnloadVectorResponse, _told_vector)


def _told_vector(
    response: vector_pb2.GetVectorResponse | vector_pb2.LoadVectorResponse | vector_pb2.UnloadVectorResponse,
) -> VectorInfo:
    return vector_from_proto(response.vector)


def _vector_name(name: str) -> str:
    return f"vectors/{name.removeprefix('vectors/')}"


def make_call(method: str, request: Message, response: type[M], read: Callable[[M], T]) -> Call[T]:
    """A call of `steering.v1`, whose responses are read by way of a message type."""
    return Call(
        f"/steering.v1.{method}", request.SerializeToString(), lambda data: read(response.FromString(data))
    )
