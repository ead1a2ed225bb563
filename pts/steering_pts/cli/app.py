"""The commands of `pts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steering_pts.cli.calibrate import calibrate
from steering_pts.cli.discover import discover
from steering_pts.cli.evaluate import evaluate
from steering_pts.cli.export import export
from steering_pts.cli.grade import grade
from steering_pts.cli.import_ import import_
from steering_pts.cli.inspect import inspect
from steering_pts.cli.push import push
from steering_pts.cli.report import report
from steering_pts.cli.show import show, status
from steering_pts.cli.vectors import vectors

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Find the pivotal tokens of a language model and turn them into steering vectors.",
    epilog=(
        "A run is a folder. `pts discover RUN --model M --dataset D` fills it, and goes on where it stopped when the "
        "same command is given again; `pts status RUN` and `pts show RUN` look at it, `pts export RUN` takes tables "
        "out, `pts vectors RUN` makes vectors, `pts inspect FILE` shows one, and `pts report RUN` writes a "
        "page about all of it. `pts demo` does everything on the bundled model."
    ),
)

for command in (discover, status, show, export, push, grade, vectors, calibrate, evaluate, report, inspect):
    app.command()(command)
app.command("import")(import_)


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    problems: Annotated[int, typer.Option(help="Training problems to search.", min=4)] = 32,
    test_problems: Annotated[int, typer.Option(help="Held-out problems to generate on.", min=10)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """The whole way on the bundled model: discover, record, make vectors, serve, and steer through the client."""
    from steering_pts.demo.run import DemoOptions, run_demo  # noqa: PLC0415 -- needs the client, other commands don't

    run_demo(DemoOptions(run, problems, test_problems, seed))
