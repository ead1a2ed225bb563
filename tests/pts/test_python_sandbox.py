"""What the sandbox leaves behind, and what it needs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.python import sandbox as sandbox_module
from steering_pts.oracles.python.sandbox import Sandbox, SandboxError, SandboxLimits
from tests.support.processes import descendants
from tests.support.programs import FOUR, verdict


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
