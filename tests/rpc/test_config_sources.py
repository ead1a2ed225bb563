"""Settings by flag, environment and file: which one wins, and what is told of wrong ones."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_server.cli import main
from steering_server.config import ConfigError, ServerConfig
from steering_server.config_printing import as_toml
from steering_server.config_sources import resolve

SECRET = "sk-a-secret-in-the-wrong-place"  # noqa: S105 -- of no server


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "PORT", "CONFIG", "MAX_QUEUED"):
        monkeypatch.delenv(f"STEERING_SERVER_{name}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file('model = "from-file"\nport = 1\nmax_queued = 1\ngrace = 1.5\n')
    monkeypatch.setenv("STEERING_SERVER_PORT", "2")
    monkeypatch.setenv("STEERING_SERVER_MAX_QUEUED", "2")
    resolved = resolve({"max_queued": "3"}, path)
    config = resolved.config
    assert (config.model, config.port, config.max_queued, config.grace) == ("from-file", 2, 3, 1.5)
    assert config.host == "127.0.0.1"
    assert resolved.origins == {
        "model": f"model in {path}",
        "grace": f"grace in {path}",
        "port": "STEERING_SERVER_PORT",
        "max_queued": "--max-queued",
    }


def test_the_environment_may_name_the_file(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERING_SERVER_CONFIG", str(file('model = "from-file"')))
    assert resolve({}, None).config.model == "from-file"


def test_an_empty_variable_is_none_and_an_unknown_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERING_SERVER_PORT", "")
    monkeypatch.setenv("STEERING_SERVER_PROT", "7")
    resolved = resolve({"model": "m"}, None)
    assert resolved.config.port == 50051
    assert resolved.unknown_variables == ("STEERING_SERVER_PROT",)


def test_everything_wrong_is_told_at_once_as_its_user_calls_it(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file('port = 70000\nmax-quued = 2\nhost = "192.0.2.1"\n[table]\nx = 1\n')
    monkeypatch.setenv("STEERING_SERVER_MAX_CONTEXT", "many")
    monkeypatch.setenv("STEERING_SERVER_TLS_KEY", SECRET)
    flags = {"grace": "-1", "token_file": SECRET, "insecure": "perhaps", "device": "a\x1b[2J"}
    with pytest.raises(ConfigError) as caught:
        resolve(flags, path)
    expected = {
        "--device: expected printable characters only",
        f"port in {path}: input should be less than or equal to 65535, got '70000'",
        f"max-quued in {path}: there is no such setting; did you mean max_queued?",
        f"table in {path}: there is no such setting",
        (
            "STEERING_SERVER_MAX_CONTEXT: input should be a valid integer, unable to parse string as an integer, "
            "got 'many'"
        ),
        "--grace: input should be greater than or equal to 0, got '-1'",
        "--insecure: input should be a valid boolean, unable to interpret input, got 'perhaps'",
        "--model: no model; name `demo`, a folder or a Hub id",
        "STEERING_SERVER_TLS_KEY: there is no TLS without a certificate; add --tls-cert",
        "STEERING_SERVER_TLS_KEY: expected the path of a file, and there is no such file",
        "--token-file: expected the path of a file, and there is no such file",
    }
    told = set(caught.value.lines)
    [host] = [
        line for line in told if line.startswith(f"host in {path}: '192.0.2.1' is not a loopback address")
    ]
    assert told - {host} == expected
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [("port = ", "is no TOML"), ("port = 1\nport = 2", "is no TOML"), ("model = '\xff'", "no text in UTF-8")],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=f"--config: .*{told}"):
        resolve({"model": "m"}, path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: .*can't be read: No such file"):
        resolve({"model": "m"}, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"--config: .*it is no file"):
        resolve({"model": "m"}, tmp_path)


def test_of_a_file_that_can_not_be_read_nothing_counts_as_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"port": "x"}, tmp_path / "none.toml")
    assert [fault.name for fault in caught.value.faults] == ["config", "port"]


def test_tls_lets_it_listen_elsewhere_and_needs_its_files(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.touch()
    assert ServerConfig(model="m", host="192.0.2.1", tls_cert=cert, tls_key=cert).host == "192.0.2.1"
    with pytest.raises(ConfigError, match="--tls-cert: a certificate needs its key"):
        ServerConfig(model="m", tls_cert=cert)
    with pytest.raises(ConfigError, match="--tls-client-ca: there is no TLS without"):
        ServerConfig(model="m", tls_client_ca=cert)


_values = st.fixed_dictionaries(
    {"model": st.text(min_size=1).filter(str.isprintable)},
    optional={
        "port": st.integers(0, 65_535),
        "grace": st.floats(0, 1e9),
        "offload_gib": st.none() | st.floats(0, 1e9),
        "insecure": st.booleans(),
        "deterministic": st.none() | st.booleans(),
        "log_format": st.sampled_from(["text", "json"]),
        "device": st.text().filter(str.isprintable),
    },
)


@given(_values)
def test_what_is_printed_gives_the_same_configuration_again(values: dict[str, object]) -> None:
    given_values = {name: value for name, value in values.items() if value is not None}
    printed = as_toml(resolve(given_values, None))
    assert ServerConfig(**tomllib.loads(printed)) == ServerConfig(**values)


def test_the_command_prints_settings_with_their_origins(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file("max_context = 64\n")
    monkeypatch.setenv("STEERING_SERVER_MODEL", "demo")
    main(["--config", str(path), "--no-deterministic", "--print-config"])
    lines = capsys.readouterr().out.splitlines()
    assert 'model = "demo"  # STEERING_SERVER_MODEL' in lines
    assert f"max_context = 64  # max_context in {path}" in lines
    assert "deterministic = false  # --deterministic" in lines
    assert "port = 50051  # default" in lines
    assert "# vectors =  # default" in lines
    assert len(lines) == len(ServerConfig.model_fields)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--token", SECRET], "--token is no flag; beside flags only the command check is taken"),
        ([f"--token={SECRET}"], "--token is no flag"),
        (["--port"], "argument --port: expected one argument"),
        (["serve"], "beside flags only the command check is taken"),
        (["check", "--port", "x"], "--port: input should be a valid integer"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_each_and_no_value_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("steering-server: error: ") for line in err.splitlines())
    assert told in err
    assert SECRET not in err
