"""Who writes a ledger: one at a time, and what a kill or a full disk costs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from steering_pts.errors import LedgerError, LedgerLockedError
from steering_pts.ledger import Ledger
from steering_pts.ledger.lock import WriterLock
from tests.support.ledger import ROLLOUT, SETTINGS, rollout


def test_a_ledger_is_read_while_it_is_written(filled: Ledger, path: Path) -> None:
    with Ledger.read(path) as reader:
        filled.add_rollouts([rollout(1)])

        assert reader.rollouts_for("c1") == [ROLLOUT, rollout(1)]


def test_a_second_writer_is_refused(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerLockedError, match=f"run.ledger is in use by process {os.getpid()}$"):
        Ledger.open(path, SETTINGS)


def test_asking_who_writes_keeps_no_writer_out(path: Path) -> None:
    code = f"""
from pathlib import Path
from steering_pts.ledger.lock import lock_holder
print("asking", flush=True)
while True:
    lock_holder(Path({str(path)!r}))
"""
    WriterLock(path).release()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        try:
            for _ in range(1000):
                WriterLock(path).release()
        finally:
            asking.kill()


def test_a_lock_is_held_although_a_full_disk_has_no_room_for_its_holder(path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from steering_pts.errors import LedgerLockedError
from steering_pts.ledger.lock import WriterLock, lock_holder
path = Path({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
lock = WriterLock(path)
print(lock_holder(path))
try:
    WriterLock(path)
except LedgerLockedError as error:
    print(error)
lock.release()
print(lock_holder(path))
"""
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)

    assert printed.stdout == f"0\n{path} is in use by another process\nNone\n"


def test_a_disk_without_locks_is_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(LedgerError, match=r"run\.ledger can't be locked: No locks available"):
        Ledger.open(path, SETTINGS)


def test_closing_lets_the_next_writer_in(path: Path) -> None:
    first = Ledger.open(path, SETTINGS)
    first.close()
    first.close()

    Ledger.open(path, SETTINGS).close()


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process that adds rollouts, eight at a time, and says so, until it is killed."""
    code = f"""
import itertools
from pathlib import Path
from steering_pts.data import Problem
from steering_pts.ledger import *
from steering_pts.oracles import Verdict
ledger = Ledger.open(Path({str(path)!r}), {SETTINGS!r})
ledger.add_problems([Problem("p1", "Q", "A", {{}})])
ledger.add_completions([CompletionRecord("c1", "p1", 0, 0, (1,), (2,), Verdict.CORRECT, "A", "stop")])
for batch in itertools.count():
    keys = [RolloutKey("c1", 0, "on_path", "explore", 8 * batch + i) for i in range(8)]
    ledger.add_rollouts([RolloutRecord(k, 0, tuple(range(500)), Verdict.CORRECT, None, 500) for k in keys])
    print(batch, flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_another_process_that_writes_is_named(path: Path) -> None:
    with start_writer(path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            with pytest.raises(LedgerLockedError) as error:
                Ledger.open(path, SETTINGS)
            assert error.value.process == writer.pid
            assert str(error.value) == f"{path} is in use by process {writer.pid}"
        finally:
            writer.kill()


@pytest.mark.parametrize("batches", [1, 20, 100])
def test_a_killed_writer_loses_no_batch_that_it_had_added(path: Path, batches: int) -> None:
    with start_writer(path) as writer:
        assert writer.stdout is not None
        for _ in range(batches):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        printed = [last, *map(int, writer.stdout.read().split())]

    with Ledger.read(path) as reader:
        read = len(reader.rollouts_for("c1"))
    with Ledger.open(path, SETTINGS) as ledger:
        found = [record.key.index for record in ledger.rollouts_for("c1")]
        ledger.add_rollouts([rollout(0)])

    assert found == list(range(len(found)))
    assert len(found) == read
    assert len(found) % 8 == 0
    assert len(found) >= 8 * (printed[-1] + 1)


def test_a_full_disk_is_a_clear_error_and_adds_nothing(filled: Ledger) -> None:
    filled._connection.execute("PRAGMA max_page_count = 20")
    many = [replace(rollout(index), ids=tuple(range(1000))) for index in range(1, 100)]

    with pytest.raises(LedgerError, match=r"run\.ledger: database or disk is full"):
        filled.add_rollouts(many)

    assert filled.rollouts_for("c1") == [ROLLOUT]
    filled._connection.execute("PRAGMA max_page_count = 1000000")
    filled.add_rollouts(many)
    assert len(filled.rollouts_for("c1")) == 100


def test_a_disk_that_takes_no_more_bytes_is_a_clear_error(path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
ledger = Ledger.open(Path({str(path)!r}), {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    ledger.add_problems([Problem(str(i), "Q" * 1000, "A", {{}}) for i in range(1000)])
except LedgerError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert printed.stdout.startswith(f"{path}: ")
    with Ledger.open(path, {}) as ledger:
        assert ledger.problems() == []


def test_use_after_closing_is_a_clear_error(path: Path) -> None:
    ledger = Ledger.open(path, SETTINGS)
    ledger.close()

    with pytest.raises(LedgerError, match="closed database"):
        ledger.problems()
