"""The signals that end a server."""

from __future__ import annotations

import signal
from types import FrameType


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that end a server: SIGTERM, SIGINT, and SIGHUP of a terminal that is closed.

    A process that was started to ignore SIGHUP, as `nohup` does, goes on ignoring it.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


def leave_on_signals() -> None:
    """Ends the process with 0 on a signal: nothing is being served yet, so nothing needs a grace.

    Also where the process is the first one of a container, whose signals the kernel ignores until they are handled.
    """
    for number in ending_signals():
        signal.signal(number, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
