"""For tests of the offline half: tiny models whose completions end by themselves, problems, the command."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steering_engine.model import SteeredModel
from steering_pts.cli import main
from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
from steering_pts.rollouts import EngineRollouts
from steering_pts.settings import SamplerSettings, SearchSettings
from tests.support.models import save_tiny_model
from tests.support.oracles import starts_in_ascii

ORACLE = "tests.support.oracles:starts_in_ascii"
SLOW_ORACLE = "tests.support.pts:starts_in_ascii_slowly"
EOS_IDS = list(range(1, 101))

SAMPLER = SamplerSettings(max_tokens=8)
SEARCH = SearchSettings(budget=120, confirm_least=12, confirm_most=24)


def save_ending_model(folder: Path, family: str = "qwen3", **options: Any) -> Path:
    """A tiny model with random weights that ends two completions in five at every token: 100 ids end a completion."""
    save_tiny_model(folder, family, **options)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "eos_token_id": EOS_IDS}), encoding="utf-8")
    return folder


def make_problems(count: int) -> list[Problem]:
    """Problems whose answers nobody looks at."""
    return [Problem(f"p{number:02}", f"Question {number}?", str(number)) for number in range(count)]


def write_problems(path: Path, count: int, first: int = 0) -> Path:
    """The same as a JSONL file."""
    rows = [{"question": f"Question {i}?", "answer": str(i)} for i in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def starts_in_ascii_slowly(problem: Problem, completion: str) -> bool:
    """`starts_in_ascii`, but in a `pts_process` so slow that a run can be caught in the middle."""
    time.sleep(float(os.environ.get("PTS_TEST_ORACLE_SECONDS", "0")))
    return starts_in_ascii(problem, completion)


@contextmanager
def rollouts_of(model: SteeredModel, sampler: SamplerSettings = SAMPLER) -> Iterator[EngineRollouts]:
    """Rollouts through a model that goes on living."""
    source = EngineRollouts(model, sampler)
    try:
        yield source
    finally:
        source._runner.close()


def discover_arguments(run: Path, model: Path, problems: Path, *more: str) -> list[str]:
    """The arguments of a `pts discover` that is quick on a tiny model."""
    return [
        "discover",
        str(run),
        *("--model", str(model)),
        *("--dataset", str(problems)),
        *("--oracle", ORACLE),
        *("--max-tokens", "8"),
        *more,
    ]


@contextmanager
def pts_process(*arguments: str, oracle_seconds: float = 0.005) -> Iterator[subprocess.Popen[str]]:
    """The command `pts` in a process and a process group of its own, killed at the end if it still runs.

    A verdict of the slow oracle takes `oracle_seconds`.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A suite that runs in the background of a shell would hand down that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    path = os.pathsep.join(filter(None, (".", os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "pts"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": path,
            "PTS_TEST_ORACLE_SECONDS": str(oracle_seconds),
        },
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_rollouts(run: Path, process: subprocess.Popen[str]) -> None:
    """Waits until the ledger of a run holds rollouts, while the process that makes them still runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        with suppress(LedgerError), Ledger.read(run / "ledger.sqlite") as ledger:
            if ledger.summary().stages:
                return
        time.sleep(0.02)
    raise AssertionError("no rollout came in time")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """What is wrong, of a command that said it in one line and nothing else."""
        lines = self.err.splitlines()
        assert self.code == 2, self
        assert len(lines) == 1, self.err
        assert self.out == ""
        return lines[0].removeprefix("pts: error: ")


def run_pts(*arguments: str) -> Ended:
    """Runs the command in this process, which saves the seconds of its start."""
    handler = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pts", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer puts its own there
        for name in ("COLUMNS", "LINES"):
            patch.setenv(name, "300")  # so that tables do not wrap
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
