"""What a server may be told, and the addresses it listens on."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from steering_engine import alias
from steering_engine.errors import ModelError
from steering_server.address import check_address, is_loopback, join_address
from steering_server.config import ConfigError, ServerConfig
from steering_server.errors import StartError


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)
    assert ServerConfig(model="m", host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])  # noqa: S104
def test_other_hosts_need_a_decision(host: str) -> None:
    with pytest.raises(StartError, match="--insecure"):
        ServerConfig(model="m", host=host)
    assert ServerConfig(model="m", host=host, insecure=True).host == host


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        ServerConfig(
            model="",
            vectors=tmp_path / "none",
            port=70_000,
            max_queued=0,
            vector_table_bytes=0,
            tensor_parallel=0,
            grace=float("nan"),
        )
    faults = ("no model", "vector directory", "got '70000'", "--max-queued", "--vector-table-bytes")
    for word in (*faults, "--tensor-parallel", "--grace"):
        assert word in str(caught.value)


def test_a_truth_value_is_no_number_and_an_empty_host_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.model_validate(
            {"model": "m", "port": True, "grace": False, "host": "", "log_prompts": True}
        )
    assert [fault.name for fault in caught.value.faults] == ["grace", "port", "host"]
    assert "--port: expected a number or a text, got true" in str(caught.value)


@pytest.mark.parametrize("name", ["vectors", "default_steering", "tls_cert", "token_file"])
def test_an_empty_path_is_not_the_working_directory(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.model_validate({"model": "m", name: ""})
    assert [(fault.name, fault.text) for fault in caught.value.faults] == [
        (name, "expected a path, got nothing")
    ]


@pytest.mark.parametrize("name", ["vectors", "default_steering", "tls_client_ca", "token_file", "tls_key"])
def test_a_path_that_can_not_be_looked_at_is_a_fault_and_a_secret_in_its_place_is_not_told(name: str) -> None:
    secret = "s3cret" * 1000  # longer than any file's name, so that asking for it fails
    with pytest.raises(ConfigError) as caught:
        ServerConfig.model_validate({"model": "m", name: secret})
    assert caught.value.__context__ is None
    [told] = [fault.text for fault in caught.value.faults if "File name too long" in fault.text]
    assert (secret in told) is (name not in {"token_file", "tls_key"})


def test_a_vector_directory_that_may_not_be_read_does_not_count_as_empty() -> None:
    with tempfile.TemporaryDirectory() as folder:  # outside of pytest's, which nobody else may enter
        Path(folder).chmod(0o300)
        code = f"""
import os
from steering_server.config import ConfigError, ServerConfig
if os.getuid() == 0:  # who may read everything
    os.setuid(65534)
try:
    ServerConfig(model="m", vectors={folder!r})
except ConfigError as error:
    print(error)
"""
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == f"--vectors: the vector directory {folder!r} can't be read (Permission denied)\n"
        Path(folder).chmod(0o700)


def test_a_number_that_could_not_be_told_or_handed_on_is_refused() -> None:
    largest = {"max_queued": 2**31 - 1, "default_max_tokens": 2**31 - 1, "vector_memory_bytes": 2**63 - 1}
    assert ServerConfig.model_validate({"model": "m", **largest}).max_queued == 2**31 - 1
    with pytest.raises(ConfigError) as caught:
        ServerConfig.model_validate({"model": "m", **{name: most + 1 for name, most in largest.items()}})
    assert {fault.name for fault in caught.value.faults} == set(largest)


def test_metrics_need_a_port_of_their_own() -> None:
    with pytest.raises(ConfigError, match="--metrics-port: 9464 is the port of the server itself"):
        ServerConfig(model="m", port=9464, metrics_port=9464)
    assert ServerConfig(model="m", port=0, metrics_port=0).metrics_port == 0


def test_an_ipv6_host_is_written_in_brackets() -> None:
    assert join_address("::1", 5) == "[::1]:5"
    assert join_address("127.0.0.1", 5) == "127.0.0.1:5"


def test_a_free_port_passes_and_a_taken_one_does_not() -> None:
    check_address("127.0.0.1", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartError, match="Address already in use"):
            check_address("127.0.0.1", taken.getsockname()[1])


def test_an_address_of_another_machine_does_not_pass() -> None:
    with pytest.raises(StartError, match=r"192\.0\.2\.1"):
        check_address("192.0.2.1", 0)


def test_a_model_that_is_no_alias_stays_as_it_is() -> None:
    assert alias.resolve_model("./demo") == "./demo"
    assert alias.resolve_model("owner/name") == "owner/name"


def test_the_demo_model_is_a_folder_of_steering_pts_or_says_how_to_make_it() -> None:
    spec = importlib.util.find_spec("steering_pts")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "demo" / "model"
    if (folder / "config.json").is_file():
        assert alias.resolve_model("demo") == str(folder)
    else:
        with pytest.raises(ModelError, match="make model"):
            alias.resolve_model("demo")
