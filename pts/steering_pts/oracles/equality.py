"""Mathematical equality by math-verify, in a process of its own.

math-verify guards itself with SIGALRM, which works in a main thread only and does not interrupt
code outside Python. A process has a main thread, can be ended whatever it does, and keeps its
memory use to itself. A plain process on a pipe is used rather
than concurrent.futures, whose pools (before Python 3.14) can't end a worker that hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 1.0  # in which math-verify's own alarm may end a comparison, which is cheaper
MEMORY_BYTES: Final = 4 * 1024**3


class EqualityError(Exception):
    """Whether two answers are equal could not be found out; the message says why."""


@dataclass(slots=True)
class EqualityWorker:
    """Compares answers in a process that starts on first use and again after it had to be ended.

    Any thread may call it; calls wait for one another. The process starts afresh (not by fork), so
    a script that judges must have an `if __name__ == "__main__"` guard, as multiprocessing asks.
    """

    seconds: float = 5.0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _process: BaseProcess | None = field(default=None, init=False, repr=False)
    _connection: Connection | None = field(default=None, init=False, repr=False)

    def equal(self, gold: str, answer: str) -> bool:
        """Whether math-verify takes `answer` for `gold` (both LaTeX or plain, undressed).

        Raises:
            EqualityError: it took longer than `seconds`, raised, or died.
        """
        with self._lock:
            connection = self._connection or self._start()
            try:
                connection.send((gold, answer))
                if not connection.poll(self.seconds + GRACE_SECONDS):
                    self._stop()
                    raise EqualityError(f"comparing took longer than {self.seconds:g} s")
                outcome = connection.recv()
            except (EOFError, OSError) as error:
                self._stop()
                raise EqualityError(f"the comparing process ended ({type(error).__name__})") from error
        if isinstance(outcome, str):
            raise EqualityError(outcome)
        return bool(outcome)

    def close(self) -> None:
        """Ends the process; a later call to `equal` would start another."""
        with self._lock:
            self._stop()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.seconds), name="math-verify", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, connection
        if not connection.poll(START_SECONDS):
            self._stop()
            raise EqualityError(f"math-verify did not start within {START_SECONDS:g} s")
        try:
            connection.recv()  # it is ready; imports must not count against the first comparison
        except EOFError:
            self._stop()
            raise EqualityError("the comparing process ended while starting") from None
        return connection

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._connection = None


def _serve(connection: Connection, seconds: float) -> None:
    """Answers comparisons until the other end closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse, verify  # noqa: PLC0415  # slow; only this process needs it
    from math_verify.errors import TimeoutException  # noqa: PLC0415

    limit = max(1, round(seconds))  # whole seconds: it sets an alarm
    with contextlib.suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            gold, answer = connection.recv()
            outcome: bool | str
            try:
                outcome = verify(
                    parse(f"${gold}$", parsing_timeout=limit, raise_on_error=True),
                    parse(f"${answer}$", parsing_timeout=limit, raise_on_error=True),
                    timeout_seconds=limit,
                    raise_on_error=True,
                )
            except TimeoutException:  # a BaseException
                outcome = f"comparing took longer than {limit} s"
            except Exception as error:  # noqa: BLE001  # any failure of theirs is an answer of ours
                outcome = f"math-verify raised {type(error).__name__}: {error!s:.200}"
            connection.send(outcome)
