"""Processes that confine themselves before they do anything: starting, ending and reaping them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from steering_pts.oracles.python.inside.confinement import LIBRARY_FD, Confinement, ConfinementError, confine

NULL, OUTPUT, ERRORS, READING, WRITING, STATUS = range(6)
REPORT: Final = LIBRARY_FD + 1
READY: Final = b"ready"
_FAILED: Final = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a child keeps open: its output, and the pipes to the other one."""

    printed: int
    reading: int
    writing: int


@dataclass(slots=True)
class Child:
    """A process that was started; how it ended (minus a signal's number), and what time it took, once it was reaped."""

    process: int
    pidfd: int
    status: int  # reads "ready" once the process is confined
    exit: int | None = None
    processor_seconds: float = 0.0


def fork(
    confinement: Confinement,
    folder: str,
    descriptors: Descriptors,
    report: int | None,
    prepare: Callable[[], Callable[[], None]],
) -> Child:
    """Starts a process that reads what it is given (`prepare`), confines itself, and does it."""
    status, reporting = os.pipe()
    launcher = os.getpid()
    process = os.fork()
    if process == 0:
        _child(confinement, folder, descriptors, (reporting, report), launcher, prepare)
    os.close(reporting)
    return Child(process, os.pidfd_open(process), status)


def _child(
    confinement: Confinement,
    folder: str,
    descriptors: Descriptors,
    files: tuple[int, int | None],
    launcher: int,
    prepare: Callable[[], Callable[[], None]],
) -> NoReturn:
    code = _FAILED
    try:
        os.setsid()
        action = prepare()
        _keep_only(descriptors, *files)
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        sys.argv[:] = sys.orig_argv[:] = ["program"]
        try:
            confine(confinement, folder, launcher)
        except ConfinementError as error:
            os.write(STATUS, str(error).encode())
            os._exit(code)
        os.write(STATUS, READY)
        os.close(STATUS)
        action()
        code = 0
    except BaseException:  # noqa: BLE001  # the last that is heard of this process
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _keep_only(descriptors: Descriptors, reporting: int, report: int | None) -> None:
    """Puts the descriptors where they belong, and closes all others."""
    wanted = {
        NULL: NULL,
        OUTPUT: descriptors.printed,
        ERRORS: descriptors.printed,
        READING: descriptors.reading,
        WRITING: descriptors.writing,
        STATUS: reporting,
    }
    if report is not None:
        wanted[REPORT] = report
    # First out of each other's way: above all that are wanted.
    copies = {target: fcntl.fcntl(source, fcntl.F_DUPFD, REPORT + 1) for target, source in wanted.items()}
    for target, copy in copies.items():
        os.dup2(copy, target, inheritable=False)
    os.closerange(LIBRARY_FD, REPORT)
    os.closerange(REPORT + (report is not None), os.sysconf("SC_OPEN_MAX"))


def reap(child: Child) -> None:
    """Waits for the process to end."""
    _, status, usage = os.wait4(child.process, 0)
    child.exit = os.waitstatus_to_exitcode(status)
    child.processor_seconds = usage.ru_utime + usage.ru_stime


def used_seconds(child: Child) -> float:
    """Processor time that a process which has not been reaped has used so far."""
    # Behind the name, which may hold anything: fields 14 and 15 of proc(5).
    fields = Path(f"/proc/{child.process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(child: Child) -> None:
    """Kills the process if it has not ended."""
    if child.exit is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process, signal.SIGKILL)  # its group, and itself if it has no group yet
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        reap(child)


def end_orphans() -> None:
    """Without a filter of system calls a program can leave processes behind; they become children of the launcher."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and _parent(entry) == os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(entry.name), signal.SIGKILL)
            os.waitpid(-1, 0)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
