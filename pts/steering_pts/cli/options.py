"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Folder of the run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object.")]
OracleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the oracle; repeatable."),
]
