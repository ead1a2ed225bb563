"""Spans of calls through OpenTelemetry's SDK, sent over OTLP/gRPC.

Where to, how often and how many is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_TRACES_SAMPLER`, ...), which its SDK reads. Its instrumentation of gRPC is not used: it wraps handlers that yield,
and ours write (see `rpc.guard`), and it knows nothing of tokens and steering.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from steering_server.errors import StartError

DEFAULT_SERVICE_NAME: Final = "steering-server"

_CLOSE_SECONDS: Final = 2.0

_ATTRIBUTES: Final = {
    "code": "rpc.response.status_code",
    "reason": "error.type",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
    "first_token_seconds": "steering.first_token_seconds",
    "queue_seconds": "steering.queue_seconds",
    "steered_rows": "steering.steered_rows",
    "vectors": "steering.vectors",
    "caller": "steering.caller",
    "request_id": "steering.request_id",
}
"""What spans tell of a call's record, and as what; by their names, so that no prompt can get in among them."""

_SERVER_FAULTS: Final = frozenset(
    {"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN"}
)
"""Codes that OpenTelemetry counts as errors of the server; others are its answers."""


class OpenTelemetry:
    """Makes spans, and sends them from a thread of its own."""

    def __init__(self, provider: TracerProvider, exporter: SpanExporter) -> None:
        """Takes what makes them and what sends them."""
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("steering_server")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> OpenTelemetry:
        """What the variables of OpenTelemetry say.

        Raises:
            StartError: They are wrong.
        """
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # no variable names it
            resource = resource.merge(Resource({SERVICE_NAME: DEFAULT_SERVICE_NAME}))
        # Not at the interpreter's exit, where it would wait for a collector that is gone.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        try:
            exporter = OTLPSpanExporter()
            provider.add_span_processor(BatchSpanProcessor(exporter))
        except (ValueError, OSError) as error:
            raise StartError(f"--tracing: a variable OTEL_… is wrong: {error}") from error
        return cls(provider, exporter)

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> OpenCallSpan:
        """A call has come; a `traceparent` in its metadata (W3C trace context) makes it a part of that trace."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        name = method.removeprefix("/")
        span = self._tracer.start_span(
            name,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": name},
        )
        return OpenCallSpan(span)

    def close(self) -> None:
        """Sends what has not been sent, for as long as a collector may keep a stopping server."""
        # The SDK would wait for longer, and can't be told not to.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)
        if sending.is_alive():
            self._exporter.shutdown()  # which ends its attempts, and so both threads
            sending.join(_CLOSE_SECONDS)


class OpenCallSpan:
    """The span of one call."""

    def __init__(self, span: Span) -> None:
        """Takes the span, which has begun."""
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to; empty where it is not sampled."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.trace_flags.sampled else ""

    def end(self, facts: Mapping[str, Any]) -> None:
        """The call has ended."""
        for fact, attribute in _ATTRIBUTES.items():
            if fact in facts:
                self._span.set_attribute(attribute, facts[fact])
        if facts.get("code") in _SERVER_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
