"""What a program may use, and what becomes of one that takes more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steering_pts.oracles import Judgement, Verdict
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.python.sandbox import SandboxLimits
from tests.support.programs import FOUR, problem_with, refused, verdict


@pytest.fixture(scope="module")
def oracle() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=20, file_mb=4, memory_mb=512, workers=2) as oracle:
        yield oracle


@pytest.fixture(scope="module")
def impatient() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=1, workers=2) as oracle:
        yield oracle


# Time.


@pytest.mark.parametrize(
    "beginning", ["", "import os, signal\nsignal.signal(signal.SIGXCPU, lambda *_: os._exit(0))\n"]
)
def test_a_loop_without_end_is_stopped_by_its_processor_time_whatever_it_does_about_the_signal(
    monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    # On a busy machine the clock would be first.
    monkeypatch.setattr(
        "steering_pts.oracles.python.oracle.SandboxLimits",
        lambda **limits: SandboxLimits(**{**limits, "wall_seconds": 300.0}),
    )
    program = f"{beginning}def f(x):\n    while True: pass"
    with PythonOracle(seconds=1, workers=1) as oracle:
        assert oracle.judge(FOUR, program) == Judgement.failure(
            "it took more processor time than its limit", program
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
