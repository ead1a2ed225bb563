"""The command `steering-server`: its flags are made of the settings in `config`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from steering_engine.lasting import lasting_imports
from steering_server.config import ConfigError, ServerConfig, flag
from steering_server.config_printing import as_toml
from steering_server.config_sources import CONFIG_VARIABLE, Resolved, resolve, variable
from steering_server.errors import StartError
from steering_server.logs import adopt_plain_lines, configure_logging, escaped

_log = logging.getLogger(__name__)

_CHECK = "check"
_DESCRIPTION = f"""Serves a language model over gRPC, steered by vectors at exactly the positions that a request names.

`steering-server` serves. The line `steering-server: listening on HOST:PORT (...)` on stdout says that it is ready.
`steering-server {_CHECK}` judges configuration, credentials, model and vectors, names all that is wrong, and ends.

A setting comes from its flag, else from its variable in the environment, else from the file that --config names,
else from its default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments; None takes those of the process.

    Raises:
        SystemExit: With 0 when all went well, with 2 when something was wrong.
    """
    # A model's or a file's name may be of letters that it can't take.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(_parsed(arguments))
    except StartError as error:
        _fail([str(error)])


def _run(given: argparse.Namespace) -> None:
    settings = vars(given)
    file, printing = settings.pop("config", None), settings.pop("print_config", False)
    checking = settings.pop("command") == [_CHECK]
    try:
        resolved = resolve(settings, file)
    except ConfigError as error:
        _fail(error.lines if checking else [str(error)])
    for name in resolved.unknown_variables:
        print(f"steering-server: warning: {name} sets nothing; no setting has this name", file=sys.stderr)
    if printing:
        print(as_toml(resolved), end="")
        return
    configure_logging(resolved.config.log_format)
    adopt_plain_lines(resolved.config.log_format)
    # Imported here: torch takes seconds, which neither --help nor a wrong setting should cost.
    if checking:
        _check(resolved)
    else:
        _serve(resolved)


def _serve(resolved: Resolved) -> None:
    from steering_engine.errors import EngineError  # noqa: PLC0415

    with lasting_imports():
        from steering_server.process import run_server  # noqa: PLC0415
    try:
        run_server(resolved.config, _announce)
    except EngineError as error:
        _fail([str(error)])


def _announce(line: str) -> None:
    """Says on stdout that the server is ready; where nobody takes the line, the server serves all the same."""
    try:
        print(line, flush=True)
    except OSError as error:
        _log.warning("nobody was told on stdout (%s): %s", error.strerror or error, line)
        # Else the interpreter writes the line once more at its end, and calls that a failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check(resolved: Resolved) -> None:
    with lasting_imports():
        from steering_server.checking import check  # noqa: PLC0415
    faults, summary = check(resolved.config)
    if faults:
        _fail(faults)
    print(f"steering-server: {summary}")


def _fail(faults: Sequence[str]) -> NoReturn:
    for fault in faults:
        print(f"steering-server: error: {escaped(' '.join(fault.split()))}", file=sys.stderr)
    sys.exit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartError(f"{message}; see --help")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, as far as they are given.

    Raises:
        StartError: There are others than these; told by their flags, since a value may be a secret.
    """
    given, others = _parser().parse_known_args(arguments)
    faults = [f"{word.partition('=')[0]} is no flag" for word in others if word.startswith("-")]
    if given.command not in ([], [_CHECK]) or len(faults) < len(others):
        faults.append(f"beside flags only the command {_CHECK} is taken")
    if faults:
        raise StartError("; ".join(faults) + "; see --help")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="steering-server",
        usage="%(prog)s [check] [FLAGS]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("command", nargs="*", default=[], metavar=_CHECK, help="judge, and end")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file of settings [{CONFIG_VARIABLE}]"
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the effective settings as TOML, each with where it comes from, and end",
    )
    for name, field in ServerConfig.model_fields.items():
        options: dict[str, Any] = {}
        if field.annotation in (bool, bool | None):
            options["action"] = argparse.BooleanOptionalAction
        default = field.default if field.default is not None else ""
        told = f"; default {getattr(default, 'value', default)}" if default not in {"", False} else ""
        text = " ".join((field.description or "").split())
        parser.add_argument(flag(name), help=f"{text} [{variable(name)}{told}]".replace("%", "%%"), **options)
    return parser
