"""The commands of `pts`, each imported when it is given: help and `pts status` need not wait for torch."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from steering_engine.lasting import lasting_imports

COMMANDS: Final = {
    "discover": ("discover", "discover"),
    "status": ("show", "status"),
    "show": ("show", "show"),
    "export": ("export", "export"),
    "import": ("import_", "import_"),
    "push": ("push", "push"),
    "grade": ("grade", "grade"),
    "vectors": ("vectors", "vectors"),
    "calibrate": ("calibrate", "calibrate"),
    "evaluate": ("evaluate", "evaluate"),
    "report": ("report", "report"),
    "inspect": ("inspect", "inspect"),
    "demo": ("demo", "demo"),
}
"""The module beside this one and the function in it of each command, in the order in which help lists them."""

_STYLE: Final[dict[str, Any]] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
}


class LazyCommands(TyperGroup):
    """Lists all commands without importing one, and imports the one that is run."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # noqa: ARG002
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:  # type: ignore[override]  # noqa: ARG002
        """A command as help lists it: by its name, and what it says of itself."""
        return TyperCommand(cmd_name, help=documentation(cmd_name)) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is given, as it is run."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, command(args[0]) if listed else None, rest


def command(name: str) -> Any:
    """A command with its options, as typer makes it."""
    module, function = COMMANDS[name]
    path = f"steering_pts.cli.{module}"
    if path not in sys.modules:  # else what a caller in this process has made meanwhile would be kept as well
        with lasting_imports():
            importlib.import_module(path)
    alone = typer.Typer(**_STYLE)
    alone.command(name)(getattr(sys.modules[path], function))
    return typer.main.get_command(alone)


def documentation(name: str) -> str:
    """What the function of a command says of itself, read from its source."""
    module, function = COMMANDS[name]
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    [own] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return ast.get_docstring(own) or ""


app = typer.Typer(
    **_STYLE,
    cls=LazyCommands,
    no_args_is_help=True,
    help="Find the pivotal tokens of a language model and turn them into steering vectors.",
    epilog=(
        "A run is a folder. `pts discover RUN --model M --dataset D` fills it, and goes on where it stopped when the "
        "same command is given again; `pts status RUN` and `pts show RUN` look at it, `pts export RUN` takes tables "
        "out, `pts vectors RUN` makes vectors, `pts inspect FILE` shows one, and `pts report RUN` writes a "
        "page about all of it. `pts demo` does everything on the bundled model."
    ),
)


@app.callback()
def _pts() -> None:
    """A group also where no command is registered with it."""
