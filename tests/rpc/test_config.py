"""What a server may be told, and the addresses it listens on."""

from __future__ import annotations

import importlib.util
import socket
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
