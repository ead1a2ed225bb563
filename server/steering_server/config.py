"""What a server is told at its start; checked once, here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steering_server.address import is_loopback, join_address
from steering_server.errors import StartError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051
DEFAULT_GRACE_SECONDS = 30.0
DEFAULT_MAX_QUEUED = 1024
DEFAULT_STREAM_BUFFER = 1024


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server's configuration.

    Attributes:
        model: `demo`, a folder, or a Hub id.
        vectors: Folder whose vectors are loaded at the start, and the only one that LoadVector reads.
        host: Address to listen on; other than loopback only with `insecure`.
        port: Port to listen on; 0 takes a free one.
        device: `auto`, or what torch calls it.
        dtype: `auto`, or what torch calls it.
        tensor_parallel: Devices that share the model, each with a process of its own.
        max_concurrent: Requests decoded at once; None means the engine's default, here and below.
        max_context: Most prompt plus generated tokens of a request.
        cache_tokens: Tokens that the KV cache holds.
        default_max_tokens: Tokens generated when a request does not say how many.
        deterministic: Seeded requests give the same bits in any batch; None means where that is possible.
        cuda_graphs: Decoding runs as captured CUDA graphs; None means where that is possible.
        offload_gib: Memory of the host for cached rows of requests that give way to others.
        vector_table_bytes: Memory of the device that loaded vectors may take.
        max_queued: Unfinished requests, decoding or waiting, above which new ones are refused.
        stream_buffer: Deltas of each completion that a stream's reader may fall behind before its stream is ended.
        grace_seconds: Time that running requests get to finish when the server stops.
        insecure: Listen on a host other than loopback without TLS.

    Raises:
        StartError: Something is wrong; all of it in one message.
    """

    model: str
    vectors: Path | None = None
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    device: str = "auto"
    dtype: str = "auto"
    tensor_parallel: int = 1
    max_concurrent: int | None = None
    max_context: int | None = None
    cache_tokens: int | None = None
    default_max_tokens: int | None = None
    deterministic: bool | None = None
    cuda_graphs: bool | None = None
    offload_gib: float | None = None
    vector_table_bytes: int | None = None
    max_queued: int = DEFAULT_MAX_QUEUED
    stream_buffer: int = DEFAULT_STREAM_BUFFER
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    insecure: bool = False

    def __post_init__(self) -> None:
        if faults := self._faults():
            raise StartError("; ".join(faults))

    @property
    def address(self) -> str:
        """`host:port` as gRPC reads it."""
        return join_address(self.host, self.port)

    def _faults(self) -> list[str]:
        faults = []
        if not self.model:
            faults.append("no model; name `demo`, a folder or a Hub id")
        if self.vectors is not None and not self.vectors.is_dir():
            faults.append(f"the vector directory {str(self.vectors)!r} does not exist")
        if not 0 <= self.port <= 65_535:
            faults.append(f"port {self.port} is outside [0, 65535]")
        if not self.insecure and not is_loopback(self.host):
            faults.append(
                f"{self.host!r} is not a loopback address and this server has no TLS; "
                "use 127.0.0.1, or --insecure to let everyone who reaches the port use the model"
            )
        at_least_one = {
            "tensor-parallel": self.tensor_parallel,
            "max-concurrent": self.max_concurrent,
            "max-context": self.max_context,
            "cache-tokens": self.cache_tokens,
            "default-max-tokens": self.default_max_tokens,
            "vector-table-bytes": self.vector_table_bytes,
            "max-queued": self.max_queued,
            "stream-buffer": self.stream_buffer,
        }
        faults += [
            f"{name} is {n}; expected at least 1"
            for name, n in at_least_one.items()
            if n is not None and n < 1
        ]
        if not 0 <= self.grace_seconds < float("inf"):
            faults.append(f"grace is {self.grace_seconds}; expected seconds, at least 0")
        return faults
