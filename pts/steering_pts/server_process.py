"""A steering server as a process of its own, for as long as a command needs one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from steering_pts.errors import PtsError

_LISTENING = re.compile(r"steering-server: listening on (\S+)")
_STOP_SECONDS = 30
# Our end of its standard input closes however we end, kill -9 included; the server then stops as on SIGTERM.
_TETHERED = """
import os, signal, sys, threading

def follow():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=follow, daemon=True).start()
from steering_server.cli import main
main()
"""


class ServerProcessError(PtsError):
    """The server did not start; the message holds what it said."""


@contextmanager
def server_process(
    model: str, vectors: Path | None, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Starts `steering-server` on a free loopback port and yields `host:port`; stops it at the end.

    Args:
        model: What `--model` takes.
        vectors: Folder of vector files; None begins without any.
        options: More of the command's options.
        environment: Variables that it has beside those of this process.

    Raises:
        ServerProcessError: It did not start.
    """
    command = [
        sys.executable,
        "-c",
        _TETHERED,
        "--model",
        model,
        *(() if vectors is None else ("--vectors", str(vectors))),
        "--port",
        "0",
        *options,
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603 -- our own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            assert process.stdout is not None  # noqa: S101 -- a pipe was asked for
            # One line says that it is ready; an end of the stream says that it gave up.
            match = next(filter(None, map(_LISTENING.match, process.stdout)), None)
            if match is None:
                code = process.wait()
                log.seek(0)
                raise ServerProcessError(
                    f"the server did not start: {log.read().strip() or f'it ended with code {code}'}"
                )
            yield match[1]
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
