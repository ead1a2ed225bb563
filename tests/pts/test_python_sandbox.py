"""What an untrusted program tries, and what becomes of it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.python import sandbox as sandbox_module
from steering_pts.oracles.python.sandbox import Sandbox, SandboxError, SandboxLimits
from tests.support.programs import attempt, problem_with

REFUSED = problem_with("assert attempt() in ('PermissionError', 'OSError', 'ValueError'), attempt()")
FOUR = problem_with("assert f(2) == 4")
ANYTHING = problem_with("f(2)")
STDIN_STDOUT_STDERR_AND_THE_PIPES = 5


@pytest.fixture(scope="module")
def oracle() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=20, file_mb=4, memory_mb=512, workers=2) as oracle:
        yield oracle


@pytest.fixture(scope="module")
def impatient() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=1, workers=2) as oracle:
        yield oracle


def verdict(oracle: PythonOracle, program: str) -> Verdict:
    return oracle.judge(FOUR, program).verdict


def refused(oracle: PythonOracle, statements: str) -> Judgement:
    judgement = oracle.judge(REFUSED, attempt(statements))
    assert judgement.verdict is Verdict.CORRECT, judgement.explanation
    return judgement


# Time.


def test_a_loop_without_end_is_stopped_by_its_processor_time(impatient: PythonOracle) -> None:
    assert impatient.judge(FOUR, "def f(x):\n    while True: pass") == Judgement.failure(
        "it took more processor time than its limit", "def f(x):\n    while True: pass"
    )


def test_sleeping_is_stopped_by_the_clock(impatient: PythonOracle) -> None:
    program = "import time\ndef f(x): time.sleep(1000)"

    assert impatient.judge(FOUR, program).explanation == "it took more time than its limit"


def test_a_loop_on_the_top_level_is_stopped_too(impatient: PythonOracle) -> None:
    assert impatient.judge(FOUR, "f = abs\nwhile True: pass").failed


def test_no_signal_that_a_program_ignores_keeps_it_alive(impatient: PythonOracle) -> None:
    program = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
def f(x):
    while True: pass
"""
    assert impatient.judge(FOUR, program).failed


def test_a_program_that_only_claims_to_have_run_out_of_time_is_incorrect(oracle: PythonOracle) -> None:
    assert (
        verdict(oracle, "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGXCPU)")
        is Verdict.INCORRECT
    )


def test_time_can_be_made_the_fault_of_the_program() -> None:
    with PythonOracle(seconds=1, timeout="incorrect", workers=1) as oracle:
        judgement = oracle.judge(FOUR, "def f(x):\n    while True: pass")

    assert (judgement.verdict, judgement.failed) == (Verdict.INCORRECT, False)


# Memory, processes, threads, files, output.


def test_a_memory_bomb_is_a_memory_error(oracle: PythonOracle) -> None:
    judgement = oracle.judge(FOUR, "def f(x):\n    kept = []\n    while True: kept.append(bytearray(10**7))")

    assert judgement.verdict is Verdict.INCORRECT
    assert judgement.explanation.startswith("MemoryError")


@pytest.mark.parametrize(
    "statements",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.get_context('fork').Process(target=print).start()",
        "os.forkpty()",
        "if ctypes.CDLL(None, use_errno=True).vfork() < 0: raise OSError",
    ],
)
def test_no_second_process_starts(oracle: PythonOracle, statements: str) -> None:
    refused(oracle, statements)


def test_a_daemon_that_forks_twice_never_comes_to_be(oracle: PythonOracle) -> None:
    program = """
import os, time
def f(x):
    while True:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
"""
    assert verdict(oracle, program) is Verdict.INCORRECT


def test_a_thread_bomb_is_stopped(oracle: PythonOracle) -> None:
    program = """
import threading, time
threading.stack_size(32768)
def f(x):
    while True:
        try:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        except RuntimeError:
            return threading.active_count()
"""
    judgement = oracle.judge(problem_with("assert f(2) > 100"), program)

    assert judgement.verdict is Verdict.INCORRECT


def test_a_few_threads_are_no_bomb(oracle: PythonOracle) -> None:
    program = """
from concurrent.futures import ThreadPoolExecutor
def f(x):
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(int, ['1'] * 4))
"""
    assert verdict(oracle, program) is Verdict.CORRECT


@pytest.mark.parametrize(
    "statements",
    [
        "with open('huge', 'wb') as file:\n    while True: file.write(bytes(10**6))",
        "with open('sparse', 'wb') as file: file.truncate(10**9)",
        "import mmap\nwith open('m', 'wb+') as file:\n    file.truncate(10**9)\n    mmap.mmap(file.fileno(), 0)",
    ],
)
def test_no_file_is_larger_than_allowed(oracle: PythonOracle, statements: str) -> None:
    refused(oracle, statements)


@pytest.mark.parametrize(
    "loop",
    [
        "open(f'{i}', 'wb').write(bytes(10**6))",
        "open(f'{i}', 'wb')",
        "os.mkdir('d'); os.chdir('d')",
        "os.symlink('x' * 200, f'{i}')",
    ],
    ids=["large", "empty", "nested", "links"],
)
def test_no_number_of_files_fills_the_disk(oracle: PythonOracle, loop: str) -> None:
    program = f"import os, itertools\ndef f(x):\n    for i in itertools.count():\n        {loop}"

    judgement = oracle.judge(FOUR, program)

    assert judgement.verdict is Verdict.INCORRECT
    assert judgement.explanation == "it took more files than its limit"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_without_end_fills_nothing_and_says_nothing(impatient: PythonOracle, descriptor: int) -> None:
    judgement = impatient.judge(
        FOUR, f"import os\ndef f(x):\n    while True: os.write({descriptor}, b'x' * 65536)"
    )

    assert judgement.failed
    assert len(judgement.explanation) < 1000


def test_no_limit_can_be_raised_again(oracle: PythonOracle) -> None:
    for limit in ("AS", "CPU", "FSIZE", "NOFILE", "CORE"):
        refused(oracle, f"resource.setrlimit(resource.RLIMIT_{limit}, (-1, -1))")
    refused(oracle, "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))")


def test_recursion_without_end_is_the_programs_fault(oracle: PythonOracle) -> None:
    assert verdict(oracle, "def f(x): return f(x)") is Verdict.INCORRECT
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return [*map(f, [x])]"
    assert verdict(oracle, deep) is Verdict.INCORRECT


# The network.


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


# Faked success.

FAKES = {
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at once": "import sys\nsys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "quit in a thread": "import os, threading\nthreading.Timer(0, os._exit, (0,)).start()\ndef f(x): return x",
    "an equal of everything": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "a number that equals everything": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(3)",
    "a text that hashes and equals": (
        "class A(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return hash(4)\n"
        "def f(x): return A('x')"
    ),
    "a container of everything": "class A:\n    def __contains__(self, item): return True\ndef f(x): return A()",
    "built-ins replaced": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 5"
    ),
    "hooks": (
        "import sys, atexit, os\nsys.excepthook = lambda *a: os._exit(0)\natexit.register(os._exit, 0)\n"
        "def f(x): raise AssertionError"
    ),
    "frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for name in frame.f_globals:\n"
        "            if callable(frame.f_globals[name]) and name.startswith(('run', 'report', '_report')):\n"
        "                frame.f_globals[name] = lambda *a: None\n        frame = frame.f_back\n    return 5"
    ),
    "garbage": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if type(o).__name__ == 'Report':\n"
        "            return 4\n    return 5"
    ),
    "modules": (
        "import sys\ndef f(x):\n    for name, module in list(sys.modules.items()):\n        if 'testing' in name:\n"
        "            module.run_tests = lambda *a: module.Report('passed', '')\n    return 5"
    ),
    "a report on every descriptor": (
        "import os, json\ndef f(x):\n    report = json.dumps({'outcome': 'passed', 'explanation': ''}).encode()\n"
        "    for n in range(64):\n        try: os.write(n, report)\n        except OSError: pass\n    return 5"
    ),
    "a message on every descriptor": (
        "import os, json\ndef f(x):\n    for content in (['value', 4, []], ['passed'], ['value']):\n"
        "        data = json.dumps(['answer', content]).encode()\n        for number in (3, 5, 6, 7):\n"
        "            try: os.write(number, len(data).to_bytes(8, 'big') + data)\n            except OSError: pass\n"
        "    return 5"
    ),
    "a print": "print('passed')\nprint('{\"outcome\": \"passed\"}')\ndef f(x): return 5",
    "a check of its own": "def check(f): pass\ndef f(x): return 5",
}


@pytest.mark.parametrize("program", FAKES.values(), ids=FAKES.keys())
def test_success_is_not_faked_by(oracle: PythonOracle, program: str) -> None:
    assert verdict(oracle, program) is Verdict.INCORRECT
    for tests in ("assert 4 in f(2)", "assert f(2) in (4, 9)", "assert not f(2) != 4", "assert {4: 1}[f(2)]"):
        assert oracle.judge(problem_with(tests), program).verdict is Verdict.INCORRECT


def test_an_answer_in_advance_is_no_more_than_an_answer(oracle: PythonOracle) -> None:
    """A program may write on its own pipe, as its function might have answered; it can't know what is expected."""
    program = """
import json, os
def f(x):
    data = json.dumps(["answer", ["value", 5, []]]).encode()
    os.write(4, len(data).to_bytes(8, "big") + data)
    return 4
"""
    assert verdict(oracle, program) is Verdict.INCORRECT


def test_tests_that_swallow_everything_do_not_hide_that_the_program_has_ended(oracle: PythonOracle) -> None:
    tests = "try:\n    f(2)\nexcept BaseException:\n    pass"

    assert oracle.judge(problem_with(tests), "import os\ndef f(x): os._exit(0)").verdict is Verdict.INCORRECT
    assert oracle.judge(problem_with(tests), "def f(x): raise SystemExit").verdict is Verdict.INCORRECT
    assert oracle.judge(problem_with(tests), "def f(x): raise ValueError").verdict is Verdict.CORRECT


def test_the_memory_of_a_program_holds_nothing_of_the_tests(oracle: PythonOracle) -> None:
    """Neither of its own nor of those of programs before it."""
    program = """
import gc
def f():
    word = chr(120) + 'ylophone'
    return [o for o in gc.get_objects() if type(o) in (list, dict, tuple) and word in repr(o)[:10000]]
"""
    problem = problem_with("word = 'xylophone'\nassert f() == [], f()")
    for number in range(3):
        judgement = oracle.judge(problem, program + f"# {number}")
        assert judgement.verdict is Verdict.CORRECT, judgement.explanation


# What is left behind.


def processes() -> dict[int, int]:
    """Parent of each process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def descendants(process: int) -> set[int]:
    parents = processes()
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def test_no_process_and_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o711)
    before = descendants(os.getpid())
    programs = [
        "import os\nos.mkdir('a', 0o500)\nopen('b', 'w')\nos.mkdir('c', 0)\ndef f(x): return 4",
        "import os\nfor i in range(40):\n    os.mkdir('moved-1'); os.chdir('moved-1')\ndef f(x): return 4",
        "import os\nos.symlink('/tmp', 'l')\nos.symlink('l', 'k')\ndef f(x): return 4",
        "def f(x):\n    while True: pass",
    ]
    with PythonOracle(seconds=1, workers=2) as oracle:
        judgements = oracle.judge_many([(FOUR, program) for program in programs])
        assert [judgement.verdict.value for judgement in judgements] == [*["correct"] * 3, "censored"]
        (folder,) = tmp_path.iterdir()
        assert [*folder.iterdir()] == []
        assert len(descendants(os.getpid()) - before) <= 2

    assert [*tmp_path.iterdir()] == []
    assert descendants(os.getpid()) - before == set()


def test_closing_in_the_middle_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o711)
    before = descendants(os.getpid())
    oracle = PythonOracle(seconds=100, workers=1)
    judged: list[Judgement] = []
    thread = threading.Thread(
        target=lambda: judged.append(oracle.judge(FOUR, "def f(x):\n    while True: pass"))
    )
    thread.start()
    while len(descendants(os.getpid()) - before) < 3:  # the launcher and its two processes
        time.sleep(0.01)

    oracle.close()
    thread.join()

    assert judged == [Judgement.failure("the sandbox was closed", "def f(x):\n    while True: pass")]
    assert [*tmp_path.iterdir()] == []
    assert descendants(os.getpid()) - before == set()


def test_a_closed_oracle_fails_and_may_be_closed_again() -> None:
    oracle = PythonOracle(workers=1)
    oracle.close()
    oracle.close()

    assert oracle.judge(FOUR, "def f(x): return 4") == Judgement.failure(
        "the sandbox is closed", "def f(x): return 4"
    )


# What is missing.


def test_a_machine_without_a_layer_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = sandbox_module.SyscallFilter((), ())
    monkeypatch.setattr(sandbox_module, "compile_filter", lambda _: nothing)

    with pytest.raises(
        OracleError, match=r"network, process and system-call protection \(seccomp\): there is no filter"
    ):
        PythonOracle(workers=1)


def test_unsafe_runs_with_what_there_is_and_still_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = sandbox_module.SyscallFilter((), ())
    monkeypatch.setattr(sandbox_module, "compile_filter", lambda _: nothing)
    before = descendants(os.getpid())
    daemon = """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    return 4
"""
    with PythonOracle(unsafe=True, workers=1) as oracle:
        assert verdict(oracle, daemon) is Verdict.CORRECT
        assert len(descendants(os.getpid()) - before) == 1


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    with pytest.raises(OracleError, match="only Linux has, and this is darwin"):
        PythonOracle(workers=1)


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: type("uname", (), {"machine": "riscv64"}))

    with pytest.raises(
        OracleError, match=r"system calls of riscv64 are not known here, only those of x86_64, aarch64"
    ):
        Sandbox(SandboxLimits(1, 1, 1, 1, 1), 1)


def test_a_sandbox_that_dies_is_a_failure_and_the_next_program_gets_another() -> None:
    with PythonOracle(workers=1) as oracle:
        launcher = next(iter(oracle._sandbox._launchers))
        launcher._process.kill()
        launcher._process.wait()

        assert oracle.judge(FOUR, "def f(x): return 4").failed
        assert verdict(oracle, "def f(x): return 4") is Verdict.CORRECT


def test_a_sandbox_error_names_what_the_launcher_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_BOOTSTRAP", "raise SystemExit('no room')")
    sandbox = Sandbox(SandboxLimits(1, 1, 1 << 28, 1 << 20, 4), 1)
    try:
        with pytest.raises(SandboxError, match="no room"):
            sandbox.run("", sandbox_module.Suite("", "", (), ()))
    finally:
        sandbox.close()
