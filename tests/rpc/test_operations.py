"""What an operator sees of a running server, and decides for it: metrics, logs, default steering, health."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steering_client import Client, InvalidArgumentError, SamplingParams, SteeringRule
from steering_server.config import LogFormat
from steering_server.errors import StartError
from steering_server.logs import REQUEST_ID, configure_logging
from steering_server.metrics import MAX_VECTORS, Metrics
from steering_spec import Completion, FinishReason, Phase, SteeringSpec, Usage, VectorRef
from tests.support.server import LiveServer, wait_until

DASHBOARD = Path(__file__).parents[2] / "examples/deploy/grafana-dashboard.json"
GREEDY = SamplingParams(temperature=0, max_tokens=4)
DEFAULT = {"rules": [{"vector": "calm", "strength": 2}]}
GENERATE = 'steering_requests_total{code="%s",method="Generate"}'


@pytest.fixture(scope="module")
def operated(
    model_folder: Path, vector_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server with metrics, a default steering, and prompts in its log."""
    steering = tmp_path_factory.mktemp("steering") / "default.json"
    steering.write_text(json.dumps(DEFAULT))
    settings = {"metrics_port": 0, "default_steering": steering, "log_prompts": True, "max_queued": 100}
    with LiveServer(model_folder, vectors=vector_folder, **settings) as server:
        yield server


@pytest.fixture
def client(operated: LiveServer) -> Iterator[Client]:
    with Client(operated.address) as opened:
        yield opened


def test_metrics_count_calls_tokens_and_steering(operated: LiveServer, client: Client) -> None:
    before = operated.metrics()
    prompt = list(range(1, 8))
    done = client.generate_many(
        prompt, sampling=SamplingParams(temperature=0, max_tokens=4, n=3), steering=()
    )
    steered = client.generate(prompt, sampling=GREEDY, steering=SteeringRule("pivot"))
    with client.stream(prompt, sampling=GREEDY, steering=()) as stream:
        list(stream)
    with pytest.raises(InvalidArgumentError):
        client.generate([10**6], sampling=GREEDY)
    now = operated.metrics()

    def grown(name: str) -> float:
        return now[name] - before.get(name, 0)

    assert grown(GENERATE % "OK") == 2
    assert grown(GENERATE % "INVALID_ARGUMENT") == 1
    assert grown('steering_requests_total{code="OK",method="StreamGenerate"}') == 1
    assert grown('steering_request_seconds_count{method="Generate"}') == 3
    assert grown("steering_prompt_tokens_total") == 3 * 7
    generated = sum(len(one.tokens) for one in (*done, steered, stream.completion))
    assert grown("steering_generated_tokens_total") == generated
    assert steered.usage.steered_rows > 0
    assert grown('steering_steered_tokens_total{vector="pivot"}') == steered.usage.steered_rows
    assert grown("steering_steered_rows_total") == steered.usage.steered_rows
    assert grown("steering_time_to_first_token_seconds_count") == 5
    assert grown("steering_time_per_token_seconds_count") == 5
    assert now["steering_vectors"] == 2
    assert now["steering_serving"] == 1
    assert now["steering_unfinished_requests_limit"] == 100
    assert now["steering_cache_tokens"] == operated.model.limits.cache_tokens
    assert 0 < now["steering_cache_free_tokens"] <= now["steering_cache_tokens"]
    assert any(name.startswith("steering_model_info{") for name in now)


def test_the_dashboard_shows_nothing_that_is_not_told(operated: LiveServer, client: Client) -> None:
    client.generate("hi", sampling=GREEDY)
    with pytest.raises(InvalidArgumentError):
        client.generate([10**6], sampling=GREEDY)
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"\bsteering_\w+", query)}
    told = {name.partition("{")[0] for name in operated.metrics()}
    assert len(shown) > 10
    # Without TLS no certificate expires.
    assert shown - told == {"steering_certificate_expiry_timestamp_seconds"}


def test_metrics_tell_what_is_running_and_what_was_cancelled(operated: LiveServer, client: Client) -> None:
    cancelled = 'steering_requests_total{code="CANCELLED",method="StreamGenerate"}'
    before = operated.metrics().get(cancelled, 0)
    with client.stream(
        "hi", sampling=SamplingParams(max_tokens=4000, min_tokens=4000), steering=()
    ) as stream:
        next(stream)
        now = operated.metrics()
        assert now["steering_unfinished_requests"] == 1
        assert now["steering_active_requests"] == 1
    operated.wait_idle()
    wait_until(lambda: operated.metrics().get(cancelled, 0) == before + 1)
    assert operated.metrics()["steering_unfinished_requests"] == 0


def test_a_late_call_is_told_as_one(operated: LiveServer, client: Client) -> None:
    late = GENERATE % "DEADLINE_EXCEEDED"
    before = operated.metrics().get(late, 0)
    with pytest.raises(Exception, match=r"(?i)deadline"):
        client.generate("hi", sampling=SamplingParams(max_tokens=8000, min_tokens=8000), timeout=0.2)
    operated.wait_idle()
    wait_until(lambda: operated.metrics().get(late, 0) == before + 1)


def test_vectors_beyond_the_first_share_a_label() -> None:
    metrics = Metrics()
    usage = Usage(
        prompt_tokens=1, generated_tokens=1, steered_rows=2, first_token_seconds=0.1, total_seconds=0.1
    )
    for index in range(MAX_VECTORS + 5):
        rules = (SteeringRule(f"vectors/v{index}@{'0' * 64}"), SteeringRule(f"vectors/v{index}"))
        metrics.completion(
            Completion("", (), FinishReason.EOS, usage, 0, "", applied_steering=SteeringSpec(rules))
        )
    samples = {
        sample.labels["vector"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "steering_steered_tokens_total"
    }
    assert len(samples) == MAX_VECTORS + 1
    assert samples["v0"] == 2
    assert samples["other"] == 5 * 2


def test_a_request_may_leave_replace_or_switch_off_the_default_steering(client: Client) -> None:
    left = client.generate("hi", sampling=GREEDY)
    named = client.generate("hi", sampling=GREEDY, steering=SteeringRule("calm", strength=2))
    other = client.generate("hi", sampling=GREEDY, steering=SteeringRule("pivot"))
    off = client.generate("hi", sampling=GREEDY, steering=())
    assert left.applied_steering == named.applied_steering
    assert left.applied_steering is not None
    assert left.tokens == named.tokens
    assert left.usage.steered_rows > 0
    assert other.applied_steering is not None
    assert "pivot" in other.applied_steering.rules[0].vector
    assert off.applied_steering is None
    assert off.usage.steered_rows == 0


def test_a_default_steering_acts_on_what_a_request_has_of_its_rows(
    model_folder: Path, vector_folder: Path, tmp_path: Path
) -> None:
    """The operator does not know the prompts, so no prompt is refused for being short, and none has to be long."""
    prompt, steps = Phase.PROMPT, Phase.GENERATION
    places = [
        {"phase": "PHASE_PROMPT", "positions": {"positions": [10]}},
        {"phase": "PHASE_GENERATION", "range": {"start": 6}},
    ]
    rules = [
        {"vector": "calm", "selector": {"include": places}},
        {"vector": "pivot", "selector": {"include": [places[0]], "exclude": [places[1]]}},
    ]
    path = tmp_path / "default.json"
    path.write_text(json.dumps({"rules": rules}))
    with (
        LiveServer(model_folder, vectors=vector_folder, default_steering=path) as server,
        Client(server.address) as client,
    ):

        def applied(length: int) -> list[tuple[str, list[Phase]]]:
            sampling = SamplingParams(temperature=0, max_tokens=8)
            done = client.generate(list(range(1, length + 1)), sampling=sampling)
            rules = () if done.applied_steering is None else done.applied_steering.rules
            return [
                (VectorRef.parse(rule.vector).id, [clause.phase for clause in rule.selector.include])
                for rule in rules
            ]

        assert applied(12) == [("calm", [prompt, steps]), ("pivot", [prompt])]
        assert applied(4) == [("calm", [steps])]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no json", "is no steering.v1.SteeringSpec in JSON"),
        ("[]", "is no steering.v1.SteeringSpec in JSON: expected an object"),
        ('""', "is no steering.v1.SteeringSpec in JSON: expected an object"),
        ('{"rulez": []}', "is no steering.v1.SteeringSpec in JSON"),
        (json.dumps({"rules": [{"vector": "absent", "strength": "NaN"}]}), "rules[0].strength"),
        (json.dumps({"rules": [{"vector": "absent"}]}), "steering.rules[0].vector"),
    ],
)
def test_a_default_steering_that_could_not_be_applied_is_refused(
    model_folder: Path, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "default.json"
    path.write_text(text)
    with pytest.raises(StartError) as caught, LiveServer(model_folder, default_steering=path):
        pass
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_call_leaves_one_record_and_prompts_where_they_are_wanted(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    done = client.generate("my prompt", sampling=GREEDY, steering=(), request_id="r-1")
    wait_until(lambda: "Generate OK" in caplog.text)
    [record] = [record for record in caplog.records if "Generate OK" in record.getMessage()]
    notes = vars(record)["notes"]
    seconds = notes.pop("seconds")
    assert 0 < seconds < 300
    assert 0 <= notes.pop("queue_seconds") <= seconds
    assert notes == {
        "method": "/steering.v1.GenerationService/Generate",
        "code": "OK",
        "prompt": "my prompt",
        "prompt_tokens": done.usage.prompt_tokens,
        "first_token_seconds": round(done.usage.first_token_seconds, 6),
        "generated_tokens": 4,
        "steered_rows": 0,
        "completions": [done.text],
    }


@pytest.mark.parametrize("log_format", LogFormat)
def test_no_text_of_a_caller_can_forge_a_line(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    evil = "line\n2026-01-01 INFO forged"
    token = REQUEST_ID.set(evil)
    try:
        configure_logging(log_format)
        notes = {"code": "OK", "prompt": evil, "tokens": 3}
        logging.getLogger("test").info("%s done", evil, extra={"notes": notes})
    finally:
        REQUEST_ID.reset(token)
        root.handlers[:] = handlers
        root.setLevel(level)
    [line] = capsys.readouterr().err.splitlines()
    if log_format is LogFormat.JSON:
        entry = json.loads(line)
        assert (entry["prompt"], entry["tokens"], entry["request_id"]) == (evil, 3, evil)
        assert entry["code"] == "OK"
    else:  # the code stands in the message of a call already
        escaped = evil.replace("\n", "\\n")
        assert line.endswith(f" INFO test: {escaped} done prompt={evil!r} tokens=3 request_id={evil!r}")


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(LogFormat.TEXT)
        logging.getLogger("test").error("a\x1b[2K\r\u2028\x85b\tc", exc_info=ValueError("no"))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    line, *traceback = capsys.readouterr().err.splitlines()
    assert line.endswith(" ERROR test: a\\x1b[2K\\r\\u2028\\x85b\tc")
    assert traceback == ["ValueError: no"]


def test_health_says_so_when_the_engine_is_lost(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    statuses = health_pb2.HealthCheckResponse
    with LiveServer(model_folder) as server, server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> int:
            return health.Check(health_pb2.HealthCheckRequest(service=service)).status

        services = ("", "steering.v1.GenerationService")
        assert {status(service) for service in services} == {statuses.SERVING}
        server.close_engine()
        wait_until(lambda: {status(service) for service in services} == {statuses.NOT_SERVING})
    assert "the engine is lost" in caplog.text
