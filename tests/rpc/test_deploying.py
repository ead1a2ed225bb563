"""What an operator deploys: the unit and what systemd is told, the image and its health check."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.balancers import DEPLOY, find_program
from tests.support.server import LiveServer, wait_until

UNIT = DEPLOY / "steering-server.service"
DOCKERFILE = DEPLOY / "Dockerfile"
SERVER = str(Path(sys.executable).parent / "steering-server")


def run(*command: str | None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    assert command[0] is not None
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.skipif(find_program("systemd-analyze") is None, reason="no systemd-analyze is on the path")
class TestUnit:
    @pytest.fixture
    def unit(self, tmp_path: Path) -> str:
        """The unit, for a server that is installed here."""
        path = tmp_path / UNIT.name
        path.write_text(
            UNIT.read_text().replace("ExecStart=/opt/steering/bin/steering-server", f"ExecStart={SERVER}")
        )
        return str(path)

    def test_systemd_has_nothing_against_it(self, unit: str) -> None:
        done = run("systemd-analyze", "verify", unit)
        assert (done.returncode, done.stderr) == (0, "")

    def test_little_is_open_to_it(self, unit: str) -> None:
        # In tenths; systemd calls 0 to 2 a service that is well confined.
        done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd listens for what its services say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(60)
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_systemd_is_told_when_it_is_ready_well_and_stopping(
    model_folder: Path, systemd: socket.socket
) -> None:
    with LiveServer(model_folder):
        assert systemd.recv(64) == b"READY=1"
        assert systemd.recv(64) == b"WATCHDOG=1"
    while (told := systemd.recv(64)) == b"WATCHDOG=1":
        pass
    assert told == b"STOPPING=1"


def test_a_server_without_its_engine_does_not_say_that_it_is_well(
    model_folder: Path, systemd: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveServer(model_folder) as server:
        assert systemd.recv(64) == b"READY=1"
        server.close_engine()
        wait_until(lambda: "the engine is lost" in caplog.text)
        systemd.setblocking(False)
        with suppress(BlockingIOError):  # what it said before
            while systemd.recv(64):
                pass
        systemd.settimeout(1.5)  # in which it would have said it again
        with pytest.raises(TimeoutError):
            systemd.recv(64)


@pytest.mark.skipif(find_program("hadolint") is None, reason="no hadolint is on the path")
def test_hadolint_has_nothing_against_the_dockerfile() -> None:
    done = run(find_program("hadolint"), "--failure-threshold", "style", str(DOCKERFILE))
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_built_of_files_that_suffice(tmp_path: Path) -> None:
    root = DEPLOY.parents[1]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        if (root / name).is_dir():
            shutil.copytree(
                root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*_pb2*")
            )
        else:
            shutil.copy(root / name, tmp_path)
    # The build's own packages are here, so none are fetched; protoc looks its plugins up on the path.
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "out"))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = run(sys.executable, "-m", "pip", "wheel", *options, str(tmp_path), environment={"PATH": path})
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "out").iterdir()
    listed = run(sys.executable, "-m", "zipfile", "-l", str(wheel)).stdout
    assert "steering/v1/generation_pb2.py" in listed
    assert "steering_server/cli.py" in listed


def test_the_images_health_check_follows_the_servers_health(model_folder: Path) -> None:
    with LiveServer(model_folder, metrics_port=0) as server:
        [command] = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
        url = server._server.metrics_url
        assert url is not None
        port = url.rpartition(":")[2].partition("/")[0]

        def exit_code() -> int:
            _, *arguments = json.loads(command)
            return run(
                sys.executable, *arguments, environment={"STEERING_SERVER_METRICS_PORT": port}
            ).returncode

        assert exit_code() == 0
        server.close_engine()
        wait_until(lambda: exit_code() == 1)
    assert exit_code() == 1
