"""`steering-server check`, and a server that is started by a file."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from steering_client import Client, SamplingParams, Tls
from steering_server.checking import check
from steering_server.config import ServerConfig
from tests.support.certificates import Authority, write_secret
from tests.support.server import server_process

TOKEN = "generate-token-0123456789"  # noqa: S105 -- of no other server
AUTHORITY = Authority()


def test_a_sound_configuration_is_well(model_folder: Path, tmp_path: Path) -> None:
    cert, key = AUTHORITY.sign().write(tmp_path)
    tokens = write_secret(tmp_path / "tokens", f"alice generate {TOKEN}\n")
    (tmp_path / "vectors").mkdir()
    config = ServerConfig(
        model=str(model_folder),
        tls_cert=cert,
        tls_key=key,
        token_file=tokens,
        vectors=tmp_path / "vectors",
    )
    assert check(config) == ([], "all is well (models/tiny, 0 vectors)")
    [fault] = check(config.model_copy(update={"host": "192.0.2.1"}))[0]
    assert fault.startswith("can't listen on 192.0.2.1:0: ")


def test_everything_wrong_is_named(model_folder: Path, vector_folder: Path, tmp_path: Path) -> None:
    cert, key = AUTHORITY.sign().write(tmp_path)
    write_secret(key, AUTHORITY.sign().key)
    tokens = write_secret(tmp_path / "tokens", "alice everything x\n")
    steering = tmp_path / "default.json"
    steering.write_text(json.dumps({"rules": [{"vector": "absent"}]}))
    config = ServerConfig(
        model=str(model_folder),
        tls_cert=cert,
        tls_key=key,
        token_file=tokens,
        vectors=vector_folder,
        default_steering=steering,
    )
    faults, _ = check(config)
    for text in (
        "is not the key of the certificate",
        "line 1: scopes are",
        "vector not loaded: broken.safetensors: ",
        "vector not loaded: foreign.safetensors: ",
        "steering.rules[0].vector: ",
    ):
        assert sum(text in fault for fault in faults) == 1, text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"deterministic": True, "dtype": "bfloat16"}, "it runs in bfloat16; float32 is needed"),
        ({"max_context": 64, "cache_tokens": 32}, "cache_tokens"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    model_folder: Path, settings: dict[str, Any], expected: str
) -> None:
    [fault], _ = check(ServerConfig(model=str(model_folder), **settings))
    assert expected in fault


def test_without_a_model_vector_files_are_read_all_the_same(vector_folder: Path, tmp_path: Path) -> None:
    steering = tmp_path / "default.json"
    steering.write_text("no json")
    config = ServerConfig(model=str(tmp_path / "no-model"), vectors=vector_folder, default_steering=steering)
    model, broken, default = check(config)[0]
    assert "no-model" in model
    assert broken.startswith("vector not loaded: broken.safetensors: ")
    assert "is no steering.v1.SteeringSpec in JSON" in default


def test_the_command_ends_with_a_line_for_each_fault(tmp_path: Path) -> None:
    model = str(tmp_path / "no-model")
    with server_process("check", "--model", model, "--token-file", str(tmp_path)) as server:
        code, out, err = server.end()
    assert (code, out) == (2, "")
    assert (
        err
        == "steering-server: error: --token-file: expected the path of a file, and there is no such file\n"
    )
    with server_process("check", "--model", model) as server:
        code, out, err = server.end()
    assert (code, out) == (2, "")
    assert err.startswith("steering-server: error: ")
    assert model in err
    assert "Traceback" not in err


def test_a_files_name_can_not_write_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2Jno\rharm.safetensors").write_bytes(b"no vector")
    model = str(tmp_path / "no-model")
    with server_process("check", "--model", model, "--vectors", str(tmp_path)) as server:
        code, _, err = server.end()
    assert code == 2
    assert "\x1b" not in err
    assert r"vector not loaded: \x1b[2Jno harm.safetensors: " in err


def test_a_file_is_all_that_a_server_needs(model_folder: Path, vector_folder: Path, tmp_path: Path) -> None:
    cert, key = AUTHORITY.sign().write(tmp_path)
    tokens = write_secret(tmp_path / "tokens", f"alice generate {TOKEN}\n")
    settings = {
        "model": model_folder,
        "vectors": vector_folder,
        "tls_cert": cert,
        "tls_key": key,
        "token_file": tokens,
        "log_format": "json",
    }
    file = tmp_path / "server.toml"
    lines = (f"{name} = {json.dumps(str(value))}\n" for name, value in settings.items())
    file.write_text("".join(lines) + "port = 0\nmetrics_port = 0\n")
    with server_process("--config", str(file)) as server:
        with Client(server.address(), tls=Tls(ca=AUTHORITY.ca), token=TOKEN) as client:
            assert client.generate("a secret prompt", sampling=SamplingParams(max_tokens=1)).tokens
        server.signal(signal.SIGTERM)
        code, out, err = server.end()
    assert (code, out) == (0, "")
    entries = [json.loads(line) for line in err.splitlines()]
    assert any(entry["message"].startswith("metrics are at http://127.0.0.1:") for entry in entries)
    assert any(entry.get("caller") == "alice" for entry in entries)
    assert TOKEN not in err
    assert "secret prompt" not in err
