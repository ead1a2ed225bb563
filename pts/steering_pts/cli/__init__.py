"""The command `pts`: discover pivots, look at a run, make vectors, and the demonstration.

Exit codes: 0 done; 2 wrong input, with one clear error on standard error; 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import sys

from steering_engine.errors import EngineError
from steering_pts.cli.app import app
from steering_pts.errors import PtsError
from steering_spec import InvalidRequestError


def main() -> None:
    """Runs the command line and turns expected errors into one message and an exit code."""
    try:
        app()
    except (PtsError, EngineError, InvalidRequestError) as error:
        print(f"pts: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("pts: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone, `pts show RUN | head`
        sys.stderr.close()
        sys.exit(1)
