"""The process that starts, watches and ends the processes of one program after another.

It is a fresh interpreter with an empty environment, and never reads a program or a test itself: their texts come as
open files, which it hands on. So the processes that it forks find nothing of each other in their memory. Being ready
with all modules, it starts a pair of processes in a few milliseconds, where a new interpreter takes tens.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from steering_pts.oracles.python.inside import tree
from steering_pts.oracles.python.inside.children import (
    READING,
    READY,
    REPORT,
    WRITING,
    Child,
    Descriptors,
    end,
    end_orphans,
    fork,
    reap,
    used_seconds,
)
from steering_pts.oracles.python.inside.confinement import Confinement, become_subreaper
from steering_pts.oracles.python.inside.program import run_program
from steering_pts.oracles.python.inside.testing import Suite, run_tests

CONTROL_FD: Final = 0
FILES_OF_A_JOB: Final = 3  # the program, the tests, and the empty file for the report
MAX_REPORT_BYTES: Final = 1 << 16
_TICK_SECONDS: Final = 0.02
_MAX_OUTPUT_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """How the processes are confined, how long they may take (seconds on the clock), and where their folders are."""

    confinement: Confinement
    wall_seconds: float
    folder: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pair of processes ended; not what the tests said, which is in the report.

    `limit` is the limit that was exceeded: `time`, `processor time`, `files` or `threads`. `fault` says why the
    processes could not be started. `exit` is the program's exit code, minus the signal that ended it. `output` is the
    end of what it printed.
    """

    limit: str | None
    fault: str | None
    exit: int
    output: str


@dataclass(slots=True)
class _Watch:
    """What is seen of a running pair."""

    output: bytearray = field(default_factory=bytearray)
    limit: str | None = None
    abandoned: bool = False


def main() -> None:
    """Serves the socket on descriptor 0 until it closes."""
    fields = json.loads(sys.argv[1])
    confinement = fields["confinement"]
    for name in ("folders", "files", "own_process"):
        confinement[name] = tuple(confinement[name])
    confinement["instructions"] = tuple(map(tuple, confinement["instructions"]))
    settings = LauncherSettings(Confinement(**confinement), fields["wall_seconds"], fields["folder"])
    become_subreaper()
    control = socket.socket(fileno=os.dup(CONTROL_FD))
    os.dup2(os.open(os.devnull, os.O_RDWR), CONTROL_FD)
    gc.freeze()  # what is here stays; collections in the children then copy no pages
    while True:
        message, files, _, _ = socket.recv_fds(control, 16, FILES_OF_A_JOB)
        if not message:
            return
        try:
            outcome = _run(settings, control, *files)
        finally:
            for file in files:
                os.close(file)
        if outcome is None:
            return
        control.send(json.dumps(asdict(outcome)).encode())


def _run(
    settings: LauncherSettings, control: socket.socket, source: int, suite: int, report: int
) -> Outcome | None:
    """Runs one pair of processes to its end; None when nobody waits for the outcome any more."""
    folder = tempfile.mkdtemp(dir=settings.folder)
    uid = settings.confinement.uid
    if uid is not None:
        os.chown(folder, uid, uid)
    answers, questions, (output, printed) = os.pipe(), os.pipe(), os.pipe()
    children: list[Child] = []
    try:
        program = Descriptors(printed, questions[0], answers[1])
        children.append(fork(settings.confinement, folder, program, None, lambda: _program(source)))
        tests = Descriptors(printed, answers[0], questions[1])
        children.append(fork(settings.confinement, folder, tests, report, lambda: _tests(suite)))
        for descriptor in (*answers, *questions, printed):
            os.close(descriptor)
        watch = _watch(settings, control, children, output, folder)
        return None if watch.abandoned else _outcome(settings, children, watch, output)
    finally:
        for child in children:
            end(child)
            os.close(child.pidfd)
            os.close(child.status)
        os.close(output)
        if settings.confinement.unsafe:
            end_orphans()
        tree.remove(folder)


def _program(source: int) -> Callable[[], None]:
    text = _read(source).decode(errors="surrogatepass")  # no Python, as its compiler will say, but text
    return lambda: run_program(text, READING, WRITING)


def _tests(suite: int) -> Callable[[], None]:
    fields = json.loads(_read(suite))
    tests = Suite(fields["preamble"], fields["tests"], tuple(fields["names"]), tuple(fields["modules"]))

    def run() -> None:
        report = run_tests(tests, READING, WRITING)
        os.write(REPORT, json.dumps(asdict(report)).encode()[:MAX_REPORT_BYTES])

    return run


def _read(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _watch(
    settings: LauncherSettings, control: socket.socket, children: list[Child], output: int, folder: str
) -> _Watch:
    """Waits until the tests have ended, a limit is exceeded, or nobody waits for the outcome any more."""
    program, tests = children
    watch = _Watch()
    deadline = time.monotonic() + settings.wall_seconds
    poll = select.poll()
    for descriptor in (control.fileno(), output, program.pidfd, tests.pidfd):
        poll.register(descriptor, select.POLLIN)
    while tests.exit is None and watch.limit is None and not watch.abandoned:
        for descriptor, _ in poll.poll(_TICK_SECONDS * 1000):
            if descriptor == control.fileno():
                watch.abandoned = True
            elif descriptor == output:
                _drain(output, watch, poll)
            else:
                poll.unregister(descriptor)
                reap(program if descriptor == program.pidfd else tests)
        if tests.exit is None:
            watch.limit = _exceeded(settings, children, folder, deadline)
    return watch


def _exceeded(settings: LauncherSettings, children: list[Child], folder: str, deadline: float) -> str | None:
    program, _ = children
    if any(one.exit is None and used_seconds(one) > settings.confinement.cpu_seconds for one in children):
        return "processor time"
    if time.monotonic() > deadline:
        return "time"
    if (
        program.exit is None
        and Path(f"/proc/{program.process}/task").stat().st_nlink - 2 > settings.confinement.threads
    ):
        return "threads"
    limit = settings.confinement.file_bytes
    if _written(program) > limit or tree.exceeds(folder, limit):
        return "files"
    return None


def _written(program: Child) -> int:
    """Bytes that the program has sent to a disk, including those of files that it has deleted."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{program.process}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            if name == "write_bytes":
                return int(value)
    return 0


def _drain(output: int, watch: _Watch, poll: select.poll) -> None:
    if data := os.read(output, 1 << 16):
        watch.output += data
        del watch.output[: -4 * _MAX_OUTPUT_CHARACTERS]
    else:
        poll.unregister(output)


def _outcome(settings: LauncherSettings, children: list[Child], watch: _Watch, output: int) -> Outcome:
    faults = []
    for child in children:
        end(child)
        status = os.read(child.status, 4096)
        if status != READY and watch.limit is None:
            faults.append(status.decode() or f"a process ended with {child.exit} before it was confined")
    os.set_blocking(output, False)  # what was printed last may not have been read yet
    with contextlib.suppress(BlockingIOError):
        watch.output += os.read(output, 1 << 16)
    printed = watch.output.decode(errors="replace")[-_MAX_OUTPUT_CHARACTERS:]
    limit = watch.limit or next(filter(None, (_processor_limit(settings, child) for child in children)), None)
    return Outcome(limit, "; ".join(dict.fromkeys(faults)) or None, children[0].exit or 0, printed)


def _processor_limit(settings: LauncherSettings, child: Child) -> str | None:
    # Where the kernel was faster than this process. The signal alone proves nothing: a program can send it to itself.
    over = child.processor_seconds > 0.9 * settings.confinement.cpu_seconds
    return "processor time" if over and child.exit in {-signal.SIGXCPU, -signal.SIGKILL} else None
