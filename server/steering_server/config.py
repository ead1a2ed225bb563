"""What a server is told at its start: every setting with its meaning, its default and its bounds; judged once, here.

A field is at once a flag (`--max-queued`), a variable of the environment (`STEERING_SERVER_MAX_QUEUED`) and a key of
the configuration file (`max_queued`); `config_sources` reads those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from steering_server.address import is_loopback, join_address
from steering_server.config_paths import directory_problem, file_problem
from steering_server.errors import StartError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051

_SECRETS = frozenset({"token_file", "tls_key"})
"""Settings into which a secret might be put by mistake, where a path is expected; their values are never told."""

# What gRPC's options and the fields that tell of a setting hold: 32 bits of a count, 64 of bytes.
AtLeastOne = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=1, le=2**63 - 1)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class LogFormat(Enum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a setting: its name, or one that is none, and what is wrong."""

    name: str
    text: str


class ConfigError(StartError):
    """A configuration that is wrong.

    Attributes:
        faults: Everything that is.
        lines: The same for people, each setting called as its user calls it.
    """

    def __init__(self, faults: tuple[Fault, ...], names: Mapping[str, str] | None = None) -> None:
        """Takes the faults, and what the user calls each setting where that is not the flag."""
        called = names or {}
        self.faults = faults
        self.lines = [f"{called.get(fault.name) or flag(fault.name)}: {fault.text}" for fault in faults]
        super().__init__("; ".join(self.lines))


class ServerConfig(BaseModel):
    """A server's configuration; the description of each field is its help.

    Raises:
        ConfigError: Something is wrong; all of it at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = ""
    "`demo`, a folder, or a Hub id."
    vectors: Path | None = None
    "Folder of vector files: loaded at the start, and the only one LoadVector reads."
    host: str = DEFAULT_HOST
    "Address to listen on; other than loopback only with TLS, or --insecure."
    port: Port = DEFAULT_PORT
    "Port to listen on; 0 takes a free one."
    device: str = "auto"
    "auto, cpu, cuda or cuda:N."
    dtype: str = "auto"
    "auto, float32, bfloat16 or float16."
    tensor_parallel: AtLeastOne = 1
    "Devices that share the model, by transformers' own plan for it; the server starts a process for each."
    max_concurrent: AtLeastOne | None = None
    "Requests decoded at once; more wait."
    max_context: AtLeastOne | None = None
    "Most prompt plus generated tokens of a request."
    cache_tokens: AtLeastOne | None = None
    "Tokens that the KV cache holds."
    default_max_tokens: AtLeastOne | None = None
    "Tokens generated when a request does not say how many."
    deterministic: bool | None = None
    """A seeded request gives the same tokens and log-probabilities, to the bit, alone and in any batch (float32 on a
    CPU). Where that is possible, unless said otherwise."""
    cuda_graphs: bool | None = None
    """Decoding runs as captured CUDA graphs (bfloat16 or float16 on a CUDA device). Where that is possible, unless
    said otherwise."""
    offload_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    "Memory of the host, in GiB, for cached rows of requests that give way to others (CUDA devices only)."
    vector_memory_bytes: Bytes | None = None
    "Most memory that loaded vectors take in all: tensors, rows on the device, contexts (1 GiB)."
    vector_table_bytes: Bytes | None = None
    "Memory of the device for the rows that loaded vectors are made of (1 GiB, or 16,384 rows of each block)."
    default_steering: Path | None = None
    """File with the steering of requests that name none: a steering.v1.SteeringSpec as JSON. A request's own replaces
    it, and an empty one switches it off."""
    max_queued: AtLeastOne = 1024
    "Unfinished completions above which new requests are refused."
    max_queued_per_connection: AtLeastOne | None = None
    """Unfinished completions of one connection above which its new requests are refused. Half of --max-queued, unless
    said otherwise."""
    stream_buffer: AtLeastOne = 1024
    "Deltas of each completion that a stream's reader may fall behind before its stream is ended."
    grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    "Seconds that running requests get to finish when the server stops."
    tls_cert: Path | None = None
    "PEM file of the server's certificate, followed by those between it and its authority; turns TLS on."
    tls_key: Path | None = None
    "PEM file of the certificate's private key, without a passphrase."
    tls_client_ca: Path | None = None
    "PEM file of authorities; only clients with a certificate of one of them are let in (mTLS)."
    token_file: Path | None = None
    "File of bearer tokens and their scopes; with it, no call is taken without one."
    insecure: bool = False
    "Listen on a host other than loopback without TLS."
    metrics_host: str = DEFAULT_HOST
    "Address of the metrics."
    metrics_port: Port | None = None
    "Port of the Prometheus metrics, at /metrics; 0 takes a free one. None without it."
    tracing: bool = False
    """Send a span of every call to an OpenTelemetry collector; OpenTelemetry's own variables (OTEL_...) say where to
    and how."""
    log_format: LogFormat = LogFormat.TEXT
    "How logs are written to stderr: text or json."
    log_prompts: bool = False
    "Write prompts and completions into the log."

    @property
    def connection_limit(self) -> int:
        """Most unfinished completions of one connection."""
        return min(self.max_queued_per_connection or -(-self.max_queued // 2), self.max_queued)

    @property
    def address(self) -> str:
        """`host:port` as gRPC reads it."""
        return join_address(self.host, self.port)

    @model_validator(mode="wrap")
    @classmethod
    def _judge(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Judges each setting, and then those that are sound together."""
        # A truth value counts as a number for pydantic, and a file may hold one.
        told_yes = {
            name
            for name, value in values.items()
            if isinstance(value, bool) and name in cls.model_fields and not _is_switch(cls, name)
        }
        faults = [
            Fault(name, f"expected a number or a text, got {str(values[name]).lower()}")
            for name in sorted(told_yes)
        ]
        # `Path("")` is the working directory, which nobody means by a variable of a script that is empty.
        told_nothing = {name for name, value in values.items() if value == "" and _is_path(cls, name)}
        faults += [Fault(name, "expected a path, got nothing") for name in sorted(told_nothing)]
        values = {name: value for name, value in values.items() if name not in told_yes | told_nothing}
        try:
            config = handler(values)
        except ValidationError as error:
            faults += [_fault(detail) for detail in error.errors(include_url=False)]
            wrong = {fault.name for fault in faults}
            config = handler({name: value for name, value in values.items() if name not in wrong})
        wrong = {fault.name for fault in faults}
        faults += [fault for fault in _conflicts(config) if fault.name not in wrong]
        if faults:
            raise ConfigError(tuple(faults))
        return config


def _is_switch(config: type[ServerConfig], name: str) -> bool:
    return config.model_fields[name].annotation in (bool, bool | None)


def _is_path(config: type[ServerConfig], name: str) -> bool:
    return name in config.model_fields and config.model_fields[name].annotation == (Path | None)


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def _fault(detail: Any) -> Fault:
    """A fault from pydantic's description of it."""
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return Fault(name, "there is no such setting")
    text = detail["msg"][:1].lower() + detail["msg"][1:]
    value = detail["input"]
    if isinstance(value, str | int | float) and name not in _SECRETS:
        text += f", got {str(value)[:100]!r}"
    return Fault(name, text)


def _host_faults(config: ServerConfig) -> Iterator[Fault]:
    for name in ("host", "metrics_host"):
        if not getattr(config, name):
            yield Fault(name, "no host; 0.0.0.0 or :: is every address of this machine")
    if config.host and config.tls_cert is None and not (config.insecure or is_loopback(config.host)):
        yield Fault(
            "host",
            f"{config.host!r} is not a loopback address and this server has no TLS; use 127.0.0.1, --tls-cert and "
            "--tls-key, or --insecure to let everyone who reaches the port read what is sent",
        )


def _conflicts(config: ServerConfig) -> Iterator[Fault]:
    """What is wrong with settings that are sound each by itself."""
    if not config.model:
        yield Fault("model", "no model; name `demo`, a folder or a Hub id")
    if config.vectors is not None and (problem := directory_problem(config.vectors)):
        yield Fault("vectors", f"the vector directory {str(config.vectors)!r} {problem}")
    yield from _host_faults(config)
    if config.port and (config.metrics_host, config.metrics_port) == (config.host, config.port):
        yield Fault("metrics_port", f"{config.port} is the port of the server itself; take another, or 0")
    if config.tls_cert is not None and config.tls_key is None:
        yield Fault("tls_cert", "a certificate needs its key; add --tls-key")
    for name in ("tls_key", "tls_client_ca"):
        if config.tls_cert is None and getattr(config, name) is not None:
            yield Fault(name, "there is no TLS without a certificate; add --tls-cert")
    files = ("default_steering", "tls_cert", "tls_key", "tls_client_ca", "token_file")
    for name in files:
        path: Path | None = getattr(config, name)
        if path is not None and (problem := file_problem(path)):
            told = "" if name in _SECRETS else f" {str(path)!r}"
            yield Fault(name, f"expected the path of a file, and {problem}{told}")
