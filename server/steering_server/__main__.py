"""The command `steering-server`, also as `python -m steering_server`."""

from __future__ import annotations

import sys

from steering_server.signals import leave_on_signals


def main() -> None:
    """Runs the command; where the server's packages are not installed, says what to install."""
    leave_on_signals()  # before the imports, which take a second by themselves
    try:
        from steering_server.cli import main as run  # noqa: PLC0415 -- a client-only installation lacks its packages
    except ModuleNotFoundError as error:
        print(f"steering-server: error: {error}; install pivotal-steering[server]", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
