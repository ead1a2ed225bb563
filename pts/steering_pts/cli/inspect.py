"""`pts inspect`: everything about a vector file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from steering_pts.cli.options import AsJson


def inspect(
    file: Annotated[Path, typer.Argument(help="A vector file (*.safetensors).")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model for nearest tokens and texts: demo, a folder, or a hub id. If not given, the file's own where "
            "it is on this machine; nothing is downloaded."
        ),
    ] = None,
    use_model: Annotated[
        bool,
        typer.Option("--use-model/--no-model", help="Load a model at all, which takes its memory and time."),
    ] = True,
    tokens: Annotated[int, typer.Option(help="Nearest tokens on either side.", min=1, max=1000)] = 8,
    contexts: Annotated[int, typer.Option(help="Recorded contexts to show.", min=0)] = 5,
    as_json: AsJson = False,
) -> None:
    """Show everything about a vector file: strengths, cosines, nearest tokens, probes, centroids, contexts."""
    from steering_pts.inspection.looking import InspectOptions, inspect_file  # noqa: PLC0415 -- torch takes seconds
    from steering_pts.inspection.printing import print_inspection  # noqa: PLC0415

    found = inspect_file(file, InspectOptions(model, use_model, tokens, contexts))
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), ensure_ascii=False, allow_nan=False) + "\n")
    else:
        print_inspection(found, Console(highlight=False))
