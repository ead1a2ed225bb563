"""Running untrusted programs with their tests, from the side that may be trusted.

A pool of launchers (`inside/launcher.py`), each with one pair of processes at a time. Programs, tests and reports
travel as files in memory, so nothing here or there waits for anybody to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from steering_pts.errors import OracleError
from steering_pts.oracles.python.inside.confinement import Confinement
from steering_pts.oracles.python.inside.launcher import MAX_REPORT_BYTES, LauncherSettings, Outcome
from steering_pts.oracles.python.inside.testing import Report, Suite
from steering_pts.oracles.python.syscall_filter import SyscallFilter, compile_filter

_GRACE_SECONDS: Final = 30.0  # for a launcher to start, and to clean up, on a busy machine
_PACKAGES: Final = Path(__file__).parents[3]
# Packages without their __init__, which would import half of the machine-learning world.
_BOOTSTRAP: Final = """
import sys, types
root = sys.argv.pop()
for name in ("steering_pts", "steering_pts.oracles", "steering_pts.oracles.python"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [root + "/" + name.replace(".", "/")]
from steering_pts.oracles.python.inside.launcher import main
main()
"""
_USERS: Final = (range(0x70000000, 0x7FFFFFFE), range(50_000, 65_000))
"""Ids that nobody uses (systemd.io/UIDS-GIDS); the second where a container has only 65,536."""
_NEEDED_CAPABILITIES: Final = frozenset({0, 1, 3, 5, 6, 7})
"""Chown, dac_override, fowner, kill, setgid, setuid: to make somebody of another user, and to clean up after him."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a program may use: processor and clock seconds, bytes of memory and of files, threads."""

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    file_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How the processes ended, and what the tests reported; None where they came to no report."""

    outcome: Outcome
    report: Report | None


class SandboxError(Exception):
    """The sandbox failed, so nothing is known of the program; the message says how."""


class Sandbox:
    """Runs programs, `workers` at a time; any thread may call it.

    Nothing is started before the first program. `unsafe` leaves out what the kernel does not offer.
    """

    def __init__(self, limits: SandboxLimits, workers: int, *, unsafe: bool = False) -> None:
        """Prepares the folder in which programs get theirs.

        Raises:
            OracleError: this is not Linux, or a kind of machine whose system calls are not known.
        """
        if sys.platform != "linux":
            raise OracleError(
                f"programs are confined by means that only Linux has, and this is {sys.platform}"
            )
        try:
            system_calls = compile_filter(os.uname().machine)
        except ValueError as error:
            if not unsafe:
                raise OracleError(f"programs can't be confined: {error}") from error
            system_calls = SyscallFilter((), ())
        self._limits = limits
        self._unsafe = unsafe
        self._filter = system_calls
        self._folder = tempfile.mkdtemp(prefix="pts-sandbox-")
        Path(self._folder).chmod(0o711)  # a program's own user passes through, and sees nothing
        self._launchers: set[_Launcher] = set()
        self._idle: queue.LifoQueue[_Launcher] = queue.LifoQueue()
        self._workers = threading.BoundedSemaphore(workers)
        self._close = weakref.finalize(self, _close, self._launchers, self._folder)

    def run(self, source: str, suite: Suite) -> SandboxResult:
        """Runs a program with its tests; waits while all workers are busy.

        Raises:
            SandboxError: the processes could not be started or confined, or the launcher died.
        """
        with self._workers:
            launcher = self._launcher()
            try:
                result = launcher.run(source, suite)
            except BaseException:  # Ctrl-C too: a launcher in the middle of a program can't take another
                self._launchers.discard(launcher)
                launcher.close()
                raise
            self._idle.put(launcher)
        if result.outcome.fault is not None:
            raise SandboxError(f"the program could not be confined: {result.outcome.fault}")
        return result

    def close(self) -> None:
        """Ends all processes and removes all folders; may be called twice."""
        self._close()

    def _launcher(self) -> _Launcher:
        if not self._close.alive:
            raise SandboxError("the sandbox is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            launcher = _Launcher(self._settings())
            self._launchers.add(launcher)
            return launcher

    def _settings(self) -> LauncherSettings:
        limits = self._limits
        library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"}
        confinement = Confinement(
            cpu_seconds=limits.cpu_seconds,
            memory_bytes=limits.memory_bytes,
            file_bytes=limits.file_bytes,
            threads=limits.threads,
            uid=_spare_user(),
            folders=tuple(sorted(library)),
            files=(),
            instructions=self._filter.instructions,
            own_process=self._filter.own_process,
            unsafe=self._unsafe,
        )
        return LauncherSettings(confinement, limits.wall_seconds, self._folder)


class _Launcher:
    """The process that forks the processes of programs, and the socket to it."""

    def __init__(self, settings: LauncherSettings) -> None:
        self._closed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(settings.wall_seconds + _GRACE_SECONDS)
        # Not the variables of this process, which may be secrets. Sets in the same order, whenever a program runs.
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "MALLOC_ARENA_MAX": "2"}
        if libraries := os.environ.get("LD_LIBRARY_PATH"):  # some interpreters do not start without
            environment["LD_LIBRARY_PATH"] = libraries
        interpreter = str(Path(sys.executable).resolve())
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own code and settings
                [
                    interpreter,
                    "-S",
                    "-s",
                    "-P",
                    "-c",
                    _BOOTSTRAP,
                    json.dumps(asdict(settings)),
                    str(_PACKAGES),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=environment,
                cwd=settings.folder,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )

    def run(self, source: str, suite: Suite) -> SandboxResult:
        with contextlib.ExitStack() as files:
            contents = (source.encode(errors="surrogatepass"), json.dumps(asdict(suite)).encode(), b"")
            descriptors = [files.enter_context(_memory_file(content)) for content in contents]
            try:
                socket.send_fds(self._control, [b"run"], descriptors)
                answer = self._control.recv(1 << 16)
            except OSError as error:
                raise self._error(f"does not answer ({type(error).__name__})") from error
            if not answer:
                raise self._error("ended")
            return SandboxResult(Outcome(**json.loads(answer)), _report(descriptors[-1]))

    def close(self) -> None:
        """Ends the process; those that it started end with it. A thread that waits for it gets a `SandboxError`."""
        self._closed = True
        with contextlib.suppress(OSError):  # closed before
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(timeout=1)  # it ends what runs, and cleans up, when the socket closes
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _error(self, what: str) -> SandboxError:
        if self._closed:
            return SandboxError("the sandbox was closed")
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return SandboxError(f"the sandbox {what}{f': {lines[-1]}' if lines else ''}")


def _close(launchers: set[_Launcher], folder: str) -> None:
    for launcher in list(launchers):
        launcher.close()
    launchers.clear()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("pts", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield descriptor
    finally:
        os.close(descriptor)


def _report(descriptor: int) -> Report | None:
    content = os.pread(descriptor, MAX_REPORT_BYTES, 0)
    return Report(**json.loads(content)) if content else None


def _spare_user() -> int | None:
    """A user id for one launcher's programs, if this process may become anybody; None where it may not."""
    if os.geteuid() != 0 or not _capabilities() >= _NEEDED_CAPABILITIES:
        return None
    for users in _USERS:
        if all(_is_mapped(users, Path(f"/proc/self/{kind}_map").read_text()) for kind in ("uid", "gid")):
            return random.SystemRandom().choice(users)
    return None


def _capabilities() -> set[int]:
    """Numbers of the capabilities that this process has; a container's root may have few."""
    status = Path("/proc/self/status").read_text()
    mask = int(status.partition("CapEff:")[2].split()[0], 16)
    return {number for number in range(64) if mask >> number & 1}


def _is_mapped(users: range, table: str) -> bool:
    """Whether a user namespace (see user_namespaces(7)) knows all of these ids."""
    for line in table.splitlines():
        first, _, count = map(int, line.split())
        if first <= users.start and users.stop <= first + count:
            return True
    return False
