"""What the command `steering-server` writes to stdout and stderr, whatever those are and whoever talks to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import grpc

from steering.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from tests.support.certificates import Authority
from tests.support.models import save_tiny_model
from tests.support.server import server_process


def test_no_peer_writes_into_a_log_of_json(model_folder: Path, tmp_path: Path) -> None:
    cert, key = Authority().sign().write(tmp_path)
    options = ["--port", "0", "--log-format", "json", "--tls-cert", str(cert), "--tls-key", str(key)]
    with server_process("--model", str(model_folder), *options) as server:
        host, _, port = server.address().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # gRPC says of it that a handshake has failed
            with suppress(OSError):  # it may be ended hard or soft
                while connection.recv(4096):
                    pass
        server.signal(signal.SIGTERM)
        code, _, err = server.end()
    assert code == 0
    assert [json.loads(line)["message"] for line in err.splitlines()] == ["stopping"]


def test_names_and_texts_of_any_letters_need_no_unicode_of_stdout_or_stderr(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "modèle 模")
    options = ["--port", "0", "--log-format", "json", "--log-prompts"]
    environment = {"PYTHONIOENCODING": "ascii"}
    with (
        server_process("--model", str(folder), *options, environment=environment) as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        sampling = generation_pb2.SamplingParams(max_token_count=1)
        spec = generation_pb2.GenerationSpec(text="é 模 😀", request_id="ü", sampling=sampling)
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest(spec=spec))
        server.signal(signal.SIGTERM)
        code, _, err = server.end()
    assert code == 0
    entries = [json.loads(line) for line in err.splitlines()]
    [mine] = [entry for entry in entries if entry.get("request_id") == "ü"]
    assert mine["prompt"] == "é 模 😀"


def test_a_server_whose_announcement_nobody_takes_serves_all_the_same(model_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "steering_server", "--model", str(model_folder)]
    with subprocess.Popen(
        [*command, "--port", address.rpartition(":")[2]], stdout=write, stderr=subprocess.PIPE, text=True
    ) as server:
        os.close(write)
        with grpc.insecure_channel(address) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            assert stub.GetModel(model_pb2.GetModelRequest(), timeout=60, wait_for_ready=True).model.name
        server.terminate()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "nobody was told on stdout (Broken pipe): steering-server: listening on" in err
    assert "Traceback" not in err
