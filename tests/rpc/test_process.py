"""The command `steering-server` as a process: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steering.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from steering_client import Client, SamplingParams, SteeringRule, VectorInfo
from tests.support.processes import descendants, processes
from tests.support.server import LiveServer, server_process, wait_until
from tests.support.statuses import code_of, failure


def refused(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The one line with which a server refuses to start."""
    with server_process(*arguments, environment=environment) as server:
        code, out, err = server.end()
    assert (code, out) == (2, "")
    assert err.startswith("steering-server: error: ")
    assert len(err.splitlines()) == 1
    return err


def stream_request(tokens: int) -> generation_pb2.StreamGenerateRequest:
    sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=tokens)
    return generation_pb2.StreamGenerateRequest(
        spec=generation_pb2.GenerationSpec(text="hi", sampling=sampling)
    )


def test_it_announces_itself_and_ends_well_on_sigterm(model_folder: Path, vector_folder: Path) -> None:
    with server_process(
        "--model", str(model_folder), "--vectors", str(vector_folder), "--port", "0"
    ) as server:
        line = server.announcement()
        assert line.startswith("steering-server: listening on 127.0.0.1:")
        assert line.endswith(" (models/tiny, 2 vectors)")
        server.signal(signal.SIGTERM)
        code, out, err = server.end()
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert "vector not loaded: broken.safetensors" in err
    assert "vector not loaded: foreign.safetensors" in err


def seen_through(address: str) -> tuple[list[VectorInfo], str]:
    """What a caller sees of a server: its vectors, and a completion that they steer."""
    sampling = SamplingParams(temperature=0, max_tokens=16)
    with Client(address) as client:
        done = client.generate("two plus two", sampling=sampling, steering=SteeringRule("calm"))
        return client.list_vectors(), done.text


def test_a_killed_server_comes_back_with_its_vectors_and_one_that_is_told_to_stop_finishes_what_it_has_accepted(
    model_folder: Path, vector_folder: Path
) -> None:
    options = ("--model", str(model_folder), "--vectors", str(vector_folder), "--port")
    with server_process(*options, "0") as server:
        address = server.address()
        before = seen_through(address)
        with grpc.insecure_channel(address) as channel:
            lost = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request(8000))
            next(lost)
            server.signal(signal.SIGKILL)
            assert code_of(lambda: list(lost)) is grpc.StatusCode.UNAVAILABLE
        server.end()
    with server_process(*options, address.rpartition(":")[2]) as server:
        assert server.address() == address
        assert seen_through(address) == before
        with grpc.insecure_channel(address) as channel:
            service = generation_pb2_grpc.GenerationServiceStub(channel)
            running = [service.StreamGenerate(stream_request(400)) for _ in range(24)]
            for stream in running:
                next(stream)
            server.signal(signal.SIGTERM)
            models = model_pb2_grpc.ModelServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            refused: list[grpc.RpcError] = []

            def refuses() -> bool:
                try:
                    models.GetModel(model_pb2.GetModelRequest())
                except grpc.RpcError as error:
                    refused.append(error)
                return bool(refused)

            wait_until(refuses)
            # Health was the first to say so.
            status = health.Check(health_pb2.HealthCheckRequest()).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            told = failure(refused[0])
            assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            for stream in running:
                assert list(stream)[-1].HasField("result")
            assert server.end()[0] == 0


def test_a_stream_that_outlasts_the_grace_is_told_so(model_folder: Path) -> None:
    with (
        server_process("--model", str(model_folder), "--port", "0", "--grace", "0.1") as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        running = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request(8000))
        next(running)
        server.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(running)
        lost = failure(caught.value)
        assert (lost.code, lost.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STOPPED")
        assert server.end()[0] == 0


def test_a_signal_in_the_first_seconds_ends_it_well(model_folder: Path) -> None:
    """Torch takes seconds to import; a server that is told to stop meanwhile has nothing to finish."""
    with server_process("--model", str(model_folder), "--port", "0") as server:

        def handles_sigterm() -> bool:
            lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
            [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
            return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

        wait_until(handles_sigterm)
        server.process.send_signal(signal.SIGTERM)
        code, out, _ = server.end()
    assert (code, out) == (0, "")


def test_signals_are_handled_before_anything_large_is_imported() -> None:
    program = """
import signal, sys
from steering_server.__main__ import main

def hook(event, given):
    if event == "import" and given[0] == "pydantic":
        print(*(signal.getsignal(one).__name__ for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))

sys.addaudithook(hook)
sys.argv = ["steering-server", "--model", "demo", "--print-config"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("_leave _leave _leave\n")


@pytest.mark.parametrize(
    ("before", "names"), [("SIG_DFL", "SIGTERM SIGINT SIGHUP"), ("SIG_IGN", "SIGTERM SIGINT")]
)
def test_a_closed_terminal_ends_a_server_unless_it_was_told_to_outlive_it(before: str, names: str) -> None:
    program = f"""
import signal
from steering_server.signals import ending_signals, leave_on_signals

signal.signal(signal.SIGHUP, signal.{before})
leave_on_signals()
print(*(number.name for number in ending_signals()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{names}\n"


def test_a_second_signal_stops_at_once(model_folder: Path) -> None:
    with (
        server_process("--model", str(model_folder), "--port", "0", "--grace", "1000") as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        running = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request(8000))
        next(running)
        server.signal(signal.SIGHUP)
        models = model_pb2_grpc.ModelServiceStub(channel)
        unavailable = grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: code_of(lambda: models.GetModel(model_pb2.GetModelRequest())) is unavailable)
        server.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(running)  # left alone, it would come to its end
        assert failure(caught.value).code == unavailable
        assert server.end()[0] == 0


def test_a_signal_during_loading_ends_it_well(model_folder: Path) -> None:
    with server_process("--model", str(model_folder), "--port", "0", "--log-format", "json") as server:
        time.sleep(1.0)
        server.signal(signal.SIGTERM)
        code, out, _ = server.end()
    # Before Python runs our code, the signal's default action may still apply.
    assert code in {0, -signal.SIGTERM}
    assert out == ""


def test_a_taken_port_is_refused(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("--model", str(model_folder), "--port", str(port))
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in line


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert "no-model" in refused("--model", str(tmp_path / "no-model"), "--port", "0")


def test_a_missing_vector_directory_is_refused(model_folder: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-vectors")
    assert missing in refused("--model", str(model_folder), "--vectors", missing, "--port", "0")


def test_another_host_than_loopback_is_refused(model_folder: Path) -> None:
    assert "--insecure" in refused("--model", str(model_folder), "--host", "0.0.0.0")  # noqa: S104


def test_options_come_from_the_environment_and_the_command_line_wins(
    model_folder: Path, tmp_path: Path
) -> None:
    environment = {
        "STEERING_SERVER_MODEL": str(model_folder),
        "STEERING_SERVER_PORT": "0",
        "STEERING_SERVER_VECTORS": str(tmp_path / "from-environment"),
    }
    assert "from-environment" in refused(environment=environment)
    line = refused("--vectors", str(tmp_path / "from-flag"), environment=environment)
    assert "from-flag" in line
    assert "from-environment" not in line


def test_determinism_that_can_not_be_kept_is_refused(model_folder: Path) -> None:
    options = ("--model", str(model_folder), "--port", "0", "--dtype", "bfloat16")
    expected = "can't be run deterministically: it runs in bfloat16; float32 is needed"
    assert expected in refused(*options, environment={"STEERING_SERVER_DETERMINISTIC": "true"})


def test_limits_reach_the_engine_and_logs_are_json_with_request_ids(model_folder: Path) -> None:
    options = ["--max-context", "100", "--default-max-tokens", "5", "--log-format", "json"]
    with (
        server_process("--model", str(model_folder), "--port", "0", *options) as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        model = model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest()).model
        assert (model.max_context_token_count, model.default_max_token_count) == (100, 5)
        spec = generation_pb2.GenerationSpec(text="a secret prompt", request_id="req-7")
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest(spec=spec))
        server.signal(signal.SIGTERM)
        _, _, err = server.end()
    entries = [json.loads(line) for line in err.splitlines()]
    [mine] = [entry for entry in entries if entry.get("request_id") == "req-7"]
    assert mine["message"].startswith("/steering.v1.GenerationService/Generate OK ")
    assert "secret" not in err


def test_help_names_every_variable_and_needs_no_torch() -> None:
    program = (
        "import sys; from steering_server.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'grpc'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name in (
        "MODEL",
        "VECTORS",
        "HOST",
        "PORT",
        "GRACE",
        "LOG_FORMAT",
        "MAX_QUEUED",
        "INSECURE",
        "TENSOR_PARALLEL",
        "DETERMINISTIC",
        "VECTOR_TABLE_BYTES",
    ):
        assert f"STEERING_SERVER_{name}" in run.stdout


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a model is shared by accelerators then")
class TestTensorParallel:
    def test_two_processes_serve_one_model_and_end_together(
        self, model_folder: Path, vector_folder: Path, live: LiveServer
    ) -> None:
        request = stream_request(20)
        request.spec.steering.rules.add(vector="calm")
        with live.channel() as channel:
            *_, expected = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(request)
        options = ["--vectors", str(vector_folder), "--log-format", "json", "--tensor-parallel", "2"]
        with (
            server_process("--model", str(model_folder), "--port", "0", *options) as server,
            grpc.insecure_channel(server.address()) as channel,
        ):
            service = generation_pb2_grpc.GenerationServiceStub(channel)
            *_, shared = service.StreamGenerate(request)
            assert shared.result.text == expected.result.text
            followers = descendants(server.process.pid)
            assert len(followers) == 1
            # A service manager signals every process of a service; a stream is finished all the same.
            running = service.StreamGenerate(stream_request(100))
            next(running)
            for process in (*followers, server.process.pid):
                os.kill(process, signal.SIGTERM)
            assert list(running)[-1].HasField("result")
            code, out, err = server.end()
        assert (code, out) == (0, "")
        assert not followers & set(processes())
        assert all(json.loads(line)["level"] in {"INFO", "WARNING"} for line in err.splitlines())

    def test_a_killed_server_leaves_no_process_behind(self, model_folder: Path) -> None:
        with (
            server_process("--model", str(model_folder), "--port", "0", "--tensor-parallel", "2") as server,
            grpc.insecure_channel(server.address()) as channel,
        ):
            running = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request(8000))
            next(running)
            followers = descendants(server.process.pid)
            assert len(followers) == 1
            server.signal(signal.SIGKILL)
            server.end()
            wait_until(lambda: not followers & set(processes()))
