"""The command `pts demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steering_pts.demo.run import DemoOptions, run_demo


def demo(
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    problems: Annotated[int, typer.Option(help="Training problems to search.", min=4)] = 32,
    test_problems: Annotated[int, typer.Option(help="Held-out problems to generate on.", min=10)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """The whole way on the bundled model: discover, record, make vectors, serve, and steer through the client."""
    run_demo(DemoOptions(run, problems, test_problems, seed))
