"""A process that shares a model with the driver's, and repeats its forwards (`steering_engine.engine.tensor_parallel`).

Started as `python -m steering_engine.engine.follower`, with messages on stdin. It ends when stdin does.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from steering_engine.blocks import SteeringHooks, find_blocks
from steering_engine.engine import process_group
from steering_engine.engine.library.manager import BatchManager
from steering_engine.engine.messages import Message, Start
from steering_engine.errors import EngineError
from steering_engine.loading import load_model
from steering_engine.steering.table import DirectionTable

_END_SECONDS = 10.0


def main() -> None:
    """Runs a follower until the driver closes or dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver, which finishes what is running first
    messages = iter(_Inbox(sys.stdin.buffer))
    try:
        for start in messages:  # none comes if the driver ends before it
            _follow(start, messages)
    except EngineError as error:
        sys.exit(str(error))
    process_group.leave()
    os._exit(0)  # nothing is left to be tidied up, which would take the interpreter seconds


def _follow(start: Start, messages: Iterator[Message]) -> None:
    store = process_group.connect(start.port, start.rank, start.processes)
    process_group.join(store, start.rank, start.processes)
    loaded = load_model(start.source, start.device, start.dtype, start.processes)
    rows = start.limits.vector_rows(loaded.block_count, loaded.hidden_size)
    table = DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device, rows)
    hooks = SteeringHooks(find_blocks(loaded.model), table)
    manager = BatchManager(loaded, hooks, {}, start.limits)
    for message in messages:
        manager.repeat(message)


class _Inbox:
    """Messages of the driver, read by a thread of their own: the end has to be noticed in the middle of a forward."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        while not isinstance(message := self._messages.get(), Exception):
            yield message
        if not isinstance(message, EOFError):
            raise message

    def _read(self) -> None:
        try:
            while True:
                self._messages.put(pickle.load(self._source))  # noqa: S301 -- our own parent's
        except Exception as error:  # noqa: BLE001 -- raised again in the main thread
            self._messages.put(error)
        time.sleep(_END_SECONDS)
        os._exit(1)  # the main thread still waits for processes that are gone


if __name__ == "__main__":
    main()
