"""What the server counts and measures, for Prometheus.

Nothing here tells what is asked or answered. Labels are bounded: methods are those of the API, codes those of gRPC, and
of vectors the first `MAX_VECTORS` are told by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from steering_server.address import join_address
from steering_server.errors import StartError
from steering_server.readings import Readings
from steering_spec import Completion, VectorRef

MAX_VECTORS = 64
OTHER_VECTORS = "other"

_FIRST_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_CALL_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one server; those of one process may be several."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._calls = Counter(
            "steering_requests", "Calls that have ended.", ["method", "code"], registry=registry
        )
        self._refusals = Counter(
            "steering_refusals",
            "Calls that have ended with an error, by its reason.",
            ["reason"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "steering_request_seconds",
            "From a call's arrival to its end.",
            ["method"],
            buckets=_CALL_BUCKETS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "steering_prompt_tokens", "Tokens of the prompts of finished requests.", registry=registry
        )
        self._steered_rows = Counter(
            "steering_steered_tokens",
            "Steered rows of finished completions whose steering names the vector.",
            ["vector"],
            registry=registry,
        )
        self._first_token_seconds = Histogram(
            "steering_time_to_first_token_seconds",
            "From a request's acceptance to the first token of a completion.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._token_seconds = Histogram(
            "steering_time_per_token_seconds",
            "Mean time of each further token of a completion.",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self._vectors: set[str] = set()

    def call(self, method: str, code: str, seconds: float, reason: str = "") -> None:
        """Counts a call of the API that has ended; of an error the reason too."""
        if reason:
            self._refusals.labels(reason).inc()
        name = method.rpartition("/")[2]
        self._calls.labels(name, code).inc()
        self._call_seconds.labels(name).observe(seconds)

    def completion(self, completion: Completion) -> None:
        """Counts a finished completion."""
        usage = completion.usage
        if completion.index == 0:  # the others have the same prompt
            self._prompt_tokens.inc(usage.prompt_tokens)
        self._first_token_seconds.observe(usage.first_token_seconds)
        if usage.generated_tokens > 1:
            further = usage.total_seconds - usage.first_token_seconds
            self._token_seconds.observe(further / (usage.generated_tokens - 1))
        if completion.applied_steering is not None and usage.steered_rows:
            vectors = sorted({VectorRef.parse(rule.vector).id for rule in completion.applied_steering.rules})
            for label in {self._label(vector) for vector in vectors}:
                self._steered_rows.labels(label).inc(usage.steered_rows)

    def read(self, readings: Readings) -> None:
        """Tells these readings too, as they are at every scrape."""
        self.registry.register(_Read(readings))

    def serve(self, host: str, port: int) -> MetricsServer:
        """Serves the metrics at `/metrics` of a port of their own; 0 takes a free one.

        Raises:
            StartError: The address can't be listened on.
        """
        return MetricsServer(self.registry, host, port)

    def _label(self, vector: str) -> str:
        if vector not in self._vectors and len(self._vectors) >= MAX_VECTORS:
            return OTHER_VECTORS
        self._vectors.add(vector)
        return vector


class MetricsServer:
    """A small HTTP server in threads of its own."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            address = join_address(host, port)
            raise StartError(f"can't serve metrics on {address}: {error.strerror or error}") from error
        self.url = f"http://{join_address(host, self._server.server_port)}/metrics"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Read(Collector):
    """Readings as metrics."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """The metrics of now."""
        now = self._readings
        yield InfoMetricFamily("steering_model", "The served model.", now.model())
        for name, text, count in now.counts():
            yield CounterMetricFamily(name, text, count)
        for name, text, value in now.levels():
            yield GaugeMetricFamily(name, text, value)
