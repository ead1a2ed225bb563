"""The command `pts`: discover pivots, look at a run, grade answers, make vectors, and the demonstration.

Exit codes: 0 done; 2 wrong input, with one clear error on standard error; 130 interrupted, 143 told to end (the same
command goes on).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from types import FrameType

from steering_client.errors import SteeringError
from steering_engine.errors import EngineError
from steering_pts.errors import PtsError
from steering_spec import InvalidRequestError

_INTERRUPTED = 130
_TOLD_TO_END = 128 + signal.SIGTERM


def main() -> None:
    """Runs the command line and turns expected errors into one message and an exit code."""
    # What a command has started, a server say, ends with it; without a handler SIGTERM would skip every `finally`.
    signal.signal(signal.SIGTERM, _leave)
    try:
        # Imported here: it takes seconds, in which Ctrl-C should not end in a traceback.
        from steering_pts.cli.app import app  # noqa: PLC0415

        app(prog_name="pts")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("steering"):
            raise
        print(f"pts: error: {error}; install pivotal-steering[pts]", file=sys.stderr)
        sys.exit(2)
    except (PtsError, EngineError, InvalidRequestError, SteeringError) as error:
        print(f"pts: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError) as end:
        # Typer turns an interrupt of a running command into an exit.
        code = end.code if isinstance(end, SystemExit) else _INTERRUPTED
        if code not in (_INTERRUPTED, _TOLD_TO_END):
            raise
        print("pts: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(_TOLD_TO_END if _ended_by else code)


_ended_by: list[int] = []
"""The signal that tasks were cancelled for, if there was one."""


def _leave(number: int, _frame: FrameType | None) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        sys.exit(128 + number)
    # An exit out of a running loop would leave its tasks to fail one by one, aloud. So they end first, in order.
    _ended_by.append(number)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon_threadsafe(lambda: None)  # wakes it
