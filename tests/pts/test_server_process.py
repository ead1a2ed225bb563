from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from steering_pts.server_process import ServerProcessError, server_process

# What `pts` does with SIGTERM, around a server that it needs for long.
_HOLDER = """
import signal, sys, time
from pathlib import Path
from steering_pts import cli
from steering_pts.server_process import server_process
signal.signal(signal.SIGTERM, cli._leave)
with server_process(sys.argv[1], Path(sys.argv[2])) as target:
    print(target, flush=True)
    time.sleep(600)
"""


def is_listening(target: str) -> bool:
    host, port = target.rsplit(":", 1)
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


@contextmanager
def holder(model: Path, vectors: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a server, and the server's address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(model), str(vectors)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_server_ends_with_the_process_that_is_told_to_end(ending_folder: Path, tmp_path: Path) -> None:
    with holder(ending_folder, tmp_path) as (process, target):
        assert is_listening(target)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)

    assert code == 128 + signal.SIGTERM
    assert not is_listening(target)


def test_a_server_ends_with_the_process_that_is_killed(ending_folder: Path, tmp_path: Path) -> None:
    with holder(ending_folder, tmp_path) as (process, target):
        assert is_listening(target)
        process.kill()
        process.wait(timeout=60)

        deadline = time.monotonic() + 60
        while is_listening(target) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_listening(target)


def test_a_server_ends_when_an_error_leaves_the_block(ending_folder: Path, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), server_process(str(ending_folder), tmp_path) as target:
        assert is_listening(target)
        raise ZeroDivisionError

    assert not is_listening(target)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    reason = r"the server did not start: .*nowhere: no such folder"

    with pytest.raises(ServerProcessError, match=reason), server_process("./nowhere", tmp_path):
        pytest.fail("there is no server")
