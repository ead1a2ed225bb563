"""Real servers for tests: in a thread of this process, or as the command `steering-server`."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc

from steering_engine.engine.base import EngineStats
from steering_engine.model import SteeredModel
from steering_server.config import ServerConfig
from steering_server.process import load_model, load_vectors
from steering_server.serving import SteeringServer


class LiveServer:
    """A server on a free port, on an event loop in a thread of its own. Use it as a context manager."""

    def __init__(self, model: Path, **settings: Any) -> None:
        self.config = ServerConfig(model=str(model), **{"port": 0, **settings})
        self.model: SteeredModel
        self.address: str
        self._loop: asyncio.AbstractEventLoop
        self._server: SteeringServer
        self._stop: asyncio.Event
        self._started: queue.Queue[Exception | None] = queue.Queue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        if (error := self._started.get(timeout=60)) is not None:
            self._thread.join()
            raise error
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # its loop is closed: it has stopped already
            self.begin_stop()
            self._loop.call_soon_threadsafe(self._server.hurry)
        self._thread.join()

    def begin_stop(self) -> None:
        """Begins to stop, as SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def close_engine(self) -> None:
        """Stops the engine under the running server."""
        asyncio.run_coroutine_threadsafe(self.model.close(), self._loop).result(60)

    def metrics(self) -> dict[str, float]:
        """The metrics that the server tells, by name and labels as they are written."""
        url = self._server.metrics_url
        assert url is not None
        with urllib.request.urlopen(url) as answer:  # noqa: S310 -- the server's own
            lines = answer.read().decode().splitlines()
        told = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in told}

    def stats(self) -> EngineStats:
        return self.model.stats()

    def wait_idle(self) -> None:
        """Waits until no request has a row."""
        wait_until(lambda: self.stats().active_requests == 0 and self.stats().waiting_requests == 0)

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        return grpc.insecure_channel(self.address, options=options)

    async def _serve(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            self.model = load_model(self.config)
            load_vectors(self.config, self.model)
            self._server = SteeringServer(self.model, self.config)
            self.address = await self._server.start()
        except Exception as error:  # noqa: BLE001 -- raised again where the server was asked for
            self._started.put(error)
            return
        self._started.put(None)
        await self._stop.wait()
        await self._server.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        time.sleep(0.01)


class ServerProcess:
    """The command `steering-server`, its stdout and stderr collected.

    What it logs goes to a file: of a server that says much, nobody could read a pipe in time.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 -- closed with the process
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "steering-server"), *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        )

    def announcement(self) -> str:
        """The line that says that the server is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()[2]
        return line.rstrip("\n")

    def address(self) -> str:
        """The address that the server announces."""
        line = self.announcement()
        match = re.fullmatch(r"steering-server: listening on (127\.0\.0\.1:\d+) \(.*\)", line)
        assert match is not None, line
        return match[1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Waits for the end: exit code, the rest of stdout, stderr."""
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out, self.log()

    def log(self) -> str:
        """What it has logged so far."""
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """Kills it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._log.close()


@contextmanager
def server_process(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """A `steering-server` that is killed at the end if it still runs."""
    running = ServerProcess(*arguments, environment=environment)
    try:
        yield running
    finally:
        running.close()
