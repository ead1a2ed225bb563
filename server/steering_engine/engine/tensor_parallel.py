"""One model shared by several processes, each with a device of its own: the driver's side.

Process 0, the driver, is the engine that everybody else sees. Its followers (`steering_engine.engine.follower`) hold
their shares of the weights and of the cache, and repeat every forward of the driver, which sends them its rows, pages
and steering. Each part of a block ends in a sum over all processes, so every process has the whole residual stream and
steers it alike.

The library has a scheme of its own, in which every process schedules for itself and all have to come to the same
batches. Here the driver alone decides (stop sequences, `until`, cancellations, triggers, forks), so no two processes
can come to differ over what a batch holds, and a follower needs to know no request.

Messages go through a pipe to each follower, tensors through the process group. A follower whose pipe ends, because the
driver has closed it or has died, ends too.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from steering_engine.engine import process_group
from steering_engine.engine.attention import PackedLayout
from steering_engine.engine.library.inputs import share_tensors, sizes_of
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.messages import Forward, Message, Start
from steering_engine.errors import EngineStoppedError, ModelError
from steering_engine.steering.batch import BatchPlan
from steering_engine.steering.table import DirectionTable

_log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 5.0
_END_SECONDS = 20.0


class Followers:
    """The processes that share the driver's model, as the driver sees them. One thread at a time may send to them.

    Attributes:
        on_loss: Called once, in a thread of its own, with a sentence when one of them has ended unasked.
    """

    def __init__(self, processes: int) -> None:
        """Starts `processes - 1` of them; they wait for their first message."""
        self.on_loss: Callable[[str], None] = lambda _reason: None
        self._processes = processes
        self._closing = False
        self._known_writes = 0
        self._loss: str | None = None
        self._lock = threading.Lock()
        self._members: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        for rank in range(1, processes):
            member = _spawn(rank)
            name = f"steering-follower-{rank}"
            self._members.append(member)
            self._threads.append(
                threading.Thread(target=self._watch, args=(rank, member), name=name, daemon=True)
            )
            self._threads[-1].start()

    @classmethod
    def start(cls, source: str, device: str, dtype: str, limits: EngineLimits, processes: int) -> Followers:
        """Starts the followers of a model that is about to be loaded, and makes this process their driver.

        Raises:
            ModelError: One of them could not start.
        """
        store, port = process_group.open_store(processes)
        followers = cls(processes)
        with followers.guard():
            for rank, member in enumerate(followers._members, 1):
                start = Start(rank, processes, port, source, device, dtype, limits)
                followers._write(member, pickle.dumps(start))
            while not process_group.all_connected(store, processes):
                followers.check()
                time.sleep(0.05)
            process_group.join(store, 0, processes)
        return followers

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Ends the followers at once if what is inside fails.

        Raises:
            ModelError: It failed because one of them did.
        """
        try:
            yield
        except BaseException as error:
            loss = self.loss() if isinstance(error, Exception) else None
            self.close(at_once=True)
            if loss is not None:
                raise ModelError(loss) from error
            raise

    def check(self) -> None:
        """Makes sure that all followers are there.

        Raises:
            EngineStoppedError: One has ended.
        """
        if self._loss is not None:
            raise EngineStoppedError(self._loss)

    def loss(self) -> str | None:
        """Why an exchange with the followers may just have failed: which one has ended; None if all are there."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        for member, thread in zip(self._members, self._threads, strict=True):
            # What a lost process breaks may be noticed before its end is.
            with suppress(subprocess.TimeoutExpired):
                member.wait(0.2)
                thread.join(max(0.0, deadline - time.monotonic()))
        return self._loss

    def forward(
        self, plan: BatchPlan | None, layout: PackedLayout, inputs: Any, table: DirectionTable
    ) -> None:
        """Has the followers begin the forward that the driver is about to run.

        Args:
            plan: Its steering; None is that of the forward before.
            layout: How it is packed.
            inputs: The library's inputs of the batch.
            table: The directions.
        """
        self._known_writes, rows = table.written_since(self._known_writes)
        self.send(Forward(plan, layout, sizes_of(inputs), rows))
        share_tensors(inputs)

    def send(self, message: Message) -> None:
        """Sends a message to each follower.

        Raises:
            EngineStoppedError: One of them has ended.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for member in self._members:
            self._write(member, data)

    def _write(self, member: subprocess.Popen[bytes], data: bytes) -> None:
        pipe = _pipe(member)
        try:
            pipe.write(data)
            pipe.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise EngineStoppedError(self.loss() or "the processes of the model were stopped") from error

    def _watch(self, rank: int, member: subprocess.Popen[bytes]) -> None:
        last = ""
        for raw in _output(member):
            line = raw.decode(errors="replace").rstrip()
            _log.warning("process %d of the model: %s", rank, line)
            last = line.strip() or last
        code = member.wait()
        with self._lock:
            if self._closing or self._loss is not None:
                return
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._loss = f"process {rank} of {self._processes} that share the model ended ({how})"
            self._loss += f": {last}" if last else ""
        self.on_loss(self._loss)
        process_group.give_up()

    def close(self, *, at_once: bool = False) -> None:
        """Ends the followers and leaves their group; safe to call twice. No forward may be running.

        Args:
            at_once: They don't get the time to finish what they do.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
        for member in self._members:
            with suppress(OSError):
                _pipe(member).close()
            if at_once:
                member.kill()
        process_group.leave()
        deadline = time.monotonic() + _END_SECONDS
        for member, thread in zip(self._members, self._threads, strict=True):
            try:
                member.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
            thread.join()
            _output(member).close()


def _spawn(rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: what lies in the working directory is none of our modules.
        [sys.executable, "-P", "-m", "steering_engine.engine.follower"],
        stdin=subprocess.PIPE,
        # Logs of the driver may have a format, and its stdout belongs to others.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LOCAL_RANK": str(rank)},  # which device it takes, as transformers reads it
        start_new_session=True,  # a terminal's signals are for the driver
    )


def _pipe(member: subprocess.Popen[bytes]) -> IO[bytes]:
    assert member.stdin is not None  # noqa: S101 -- narrows the type for the checker
    return member.stdin


def _output(member: subprocess.Popen[bytes]) -> IO[bytes]:
    assert member.stdout is not None  # noqa: S101 -- narrows the type for the checker
    return member.stdout
