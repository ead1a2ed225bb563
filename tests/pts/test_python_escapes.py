"""What a program tries to reach outside, and does not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering_pts.oracles import Verdict
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.python import sandbox as sandbox_module
from tests.support.processes import descendants
from tests.support.programs import FOUR, problem_with, refused, verdict

STDIN_STDOUT_STDERR_AND_THE_PIPES = 5


@pytest.fixture(scope="module")
def oracle() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=20, file_mb=4, memory_mb=512, workers=2) as oracle:
        yield oracle


def test_a_listener_on_this_machine_sees_no_connection(oracle: PythonOracle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        refused(oracle, f"socket.create_connection(('127.0.0.1', {port}))")
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_unix_socket_sees_no_connection(oracle: PythonOracle, tmp_path: Path) -> None:
    address, abstract = str(tmp_path / "socket"), "\0pts-test"
    tmp_path.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
        named.bind(address)
        Path(address).chmod(0o777)
        named.listen()
        unnamed.bind(abstract)
        for listener in (named, unnamed):
            listener.setblocking(False)
        refused(oracle, f"socket.socket(socket.AF_UNIX).connect({address!r})")
        refused(oracle, f"socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', {abstract!r})")
        refused(oracle, f"socket.socketpair()[0].connect({address!r})")
        with pytest.raises(BlockingIOError):
            named.accept()
        with pytest.raises(BlockingIOError):
            unnamed.recv(1)


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"])
def test_no_socket_of_any_family_is_made(oracle: PythonOracle, family: str) -> None:
    refused(oracle, f"socket.socket(socket.{family}, socket.SOCK_RAW if {family == 'AF_PACKET'} else 1)")


def test_asyncio_works_as_it_needs_only_a_pair_of_sockets(oracle: PythonOracle) -> None:
    program = (
        "import asyncio\nasync def g(): await asyncio.sleep(0)\ndef f(x):\n    asyncio.run(g())\n    return 4"
    )

    assert verdict(oracle, program) is Verdict.CORRECT


def test_the_whole_standard_library_is_there(oracle: PythonOracle) -> None:
    """Also parts of packages that were imported before the sandbox closed."""
    modules = [
        "encodings.idna",
        "json.tool",
        "ctypes.util",
        "importlib.resources",
        "concurrent.futures",
        "unittest.mock",
        "email.mime.text",
        "sqlite3",
        "xml.etree.ElementTree",
        "zoneinfo",
        "typing",
        "heapq",
        "bisect",
        "statistics",
        "hashlib",
        "lzma",
        "ssl",
        "curses",
        "multiprocessing",
    ]
    program = (
        f"import importlib\ndef f(x): return sum(bool(importlib.import_module(name)) for name in {modules})"
    )

    judgement = oracle.judge(problem_with(f"assert f(2) == {len(modules)}"), program)

    assert judgement.verdict is Verdict.CORRECT, judgement.explanation


# Secrets and files.


def test_no_variable_of_the_environment_is_seen(
    oracle: PythonOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTS_TEST_SECRET", "hunter2")
    with PythonOracle(workers=1) as fresh:
        program = "import os\ndef f(): return [*os.environ.items(), *os.environb.items()]"
        judgement = fresh.judge(
            problem_with("assert 'hunter2' not in str(f())\nassert len(f()) < 20"), program
        )

    assert judgement.verdict is Verdict.CORRECT


@pytest.mark.parametrize("file", ["environ", "mem", "maps", "cmdline", "fd"])
@pytest.mark.parametrize("process", ["{os.getppid()}", "1", "self"])
def test_proc_shows_nothing_of_any_process(oracle: PythonOracle, file: str, process: str) -> None:
    refused(oracle, f"os.open(f'/proc/{process}/{file}', os.O_RDONLY)")


def test_no_file_at_home_is_read(oracle: PythonOracle) -> None:
    secret = Path.home() / ".pts-test-secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    try:
        refused(oracle, f"open({str(secret)!r})")
        refused(oracle, f"os.symlink({str(secret)!r}, 'link'); open('link')")
        refused(oracle, f"os.link({str(secret)!r}, 'hard'); open('hard')")
        refused(oracle, f"os.open('/proc/self/cwd/../../../..{secret}', os.O_RDONLY)")
    finally:
        secret.unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "/", "/home", "/proc", "/dev", "/sys"])
def test_only_the_library_and_its_own_folder_are_read(oracle: PythonOracle, path: str) -> None:
    refused(oracle, f"os.open({path!r}, os.O_RDONLY)")


def test_nothing_outside_its_folder_is_written_removed_or_changed(
    oracle: PythonOracle, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    for statements in (
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r}, 'a')",
        f"os.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"os.truncate({str(victim)!r}, 0)",
        f"os.unlink({str(victim)!r})",
        f"os.rename({str(victim)!r}, 'mine')",
        f"open('mine', 'w'); os.rename('mine', {str(victim)!r})",
        f"os.chmod({str(victim)!r}, 0)",
        f"os.utime({str(victim)!r}, (0, 0))",
        f"os.setxattr({str(victim)!r}, 'user.x', b'')",
        f"os.chown({str(victim)!r}, os.getuid(), os.getgid())",
        f"os.symlink({str(victim)!r}, 'way'); open('way', 'w')",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        f"os.mkfifo({str(tmp_path / 'new')!r})",
        f"os.symlink('/', {str(tmp_path / 'new')!r})",
        "open('/tmp/pts-test-new', 'w')",
        "open('/dev/shm/pts-test-new', 'w')",
        f"open({str(Path(__file__).with_name('pts-test-new'))!r}, 'w')",
        f"open({str(Path(os.__file__).with_name('pts_test_new.py'))!r}, 'w')",
        f"open({str(Path.home() / 'pts-test-new')!r}, 'w')",
    ):
        refused(oracle, statements)

    assert [*tmp_path.iterdir()] == [victim]
    assert victim.read_text() == "whole"
    assert victim.stat().st_mode & 0o777 == 0o666


def test_no_descriptor_is_inherited_but_its_own(oracle: PythonOracle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Path(__file__).open() as file:
        for descriptor in (server.fileno(), file.fileno()):
            os.set_inheritable(descriptor, True)
        program = """
import os, stat
def f():
    found = []
    for number in range(1024):
        try:
            found.append((number, stat.S_IFMT(os.fstat(number).st_mode)))
        except OSError:
            pass
    return found
"""
        tests = f"""
import stat
found = dict(f())
extra = {{number: kind for number, kind in found.items() if number >= {STDIN_STDOUT_STDERR_AND_THE_PIPES}}}
assert set(extra.values()) <= {{stat.S_IFDIR}}, found  # the standard library's folder
assert len(extra) <= 1, found
"""
        with PythonOracle(workers=1) as fresh:
            judgement = fresh.judge(problem_with(tests), program)

    assert judgement.verdict is Verdict.CORRECT, judgement.explanation


# Other processes and privileges.


@pytest.mark.parametrize("victim", ["os.getppid()", "1", "-1", "0", "-os.getppid()"])
def test_no_other_process_gets_a_signal(oracle: PythonOracle, victim: str) -> None:
    refused(oracle, f"os.kill({victim}, 9)")


@pytest.mark.parametrize(
    "call",
    [
        "ptrace(16, os.getppid(), 0, 0)",
        "syscall(101, 16, os.getppid(), 0, 0)",
        "process_vm_readv(os.getppid(), None, 0, None, 0, 0)",
        "setuid(0)",
        "setgid(0)",
        "setgroups(0, None)",
        "unshare(0x10000000)",
        "mount(b'none', b'.', b'tmpfs', 0, None)",
        "chroot(b'.')",
        "personality(0x40000)",
        "prctl(4, 1, 0, 0, 0)",
        "fcntl(0, 8, os.getppid())",
        "sethostname(b'x', 1)",
        "shmget(0, 4096, 0o1600)",
        "memfd_create(b'x', 0)",
        "inotify_init()",
        "reboot(0)",
    ],
)
def test_no_system_call_of_these_gets_through_ctypes(oracle: PythonOracle, call: str) -> None:
    refused(
        oracle,
        f"if ctypes.CDLL(None, use_errno=True).{call} >= 0: return 'done'\nraise OSError(ctypes.get_errno())",
    )


def test_a_crash_by_ctypes_is_incorrect(oracle: PythonOracle) -> None:
    judgement = oracle.judge(FOUR, "import ctypes\ndef f(x): return ctypes.string_at(0)")

    assert judgement.verdict is Verdict.INCORRECT
    assert "exit code -11" in judgement.explanation


def test_root_runs_a_program_as_somebody_else_where_it_may(oracle: PythonOracle) -> None:
    program = "import os\ndef f(): return [*os.getresuid(), *os.getresgid(), *os.getgroups()]"
    stays_root = os.geteuid() == 0 and sandbox_module._spare_user() is None

    judgement = oracle.judge(problem_with(f"assert (0 in f()) is {stays_root}"), program)

    assert judgement.verdict is Verdict.CORRECT


def test_the_kernel_holds_both_processes_without_capabilities_and_behind_a_filter() -> None:
    before = descendants(os.getpid())
    with PythonOracle(seconds=100, workers=1) as oracle:
        (launcher,) = descendants(os.getpid()) - before
        thread = threading.Thread(target=oracle.judge, args=(FOUR, "import time\ntime.sleep(1000)"))
        thread.start()
        seen: list[str] = []
        while len(seen) < 2 or not all("\nSeccomp:\t2\n" in status for status in seen):
            seen = [Path(f"/proc/{process}/status").read_text() for process in descendants(launcher)]
            time.sleep(0.01)
        oracle.close()
        thread.join()

    for status in seen:
        for line in ("CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
            assert f"\n{line}\n" in status
