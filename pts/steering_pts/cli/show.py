"""`pts status` and `pts show`: what a run has done, and what it found."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from steering_pts.cli.options import AsJson, Run
from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.cli.tables import print_completions, print_pivots, print_summary
from steering_pts.ledger.export import read_pivots


def status(run: Run, as_json: AsJson = False) -> None:
    """Show what a run has done, what is left of it, and what it has cost so far; also while it runs."""
    print_summary(RunFolder(run), as_json=as_json)


def show(
    run: Run,
    limit: Annotated[int, typer.Option(help="Show at most this many pivots (or completions).", min=1)] = 50,
    full: Annotated[
        bool, typer.Option("--full", help="Whole completions with their pivots marked, instead of a table.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each pivot.")] = False,
) -> None:
    """Show the pivots of a run in their context: green where they help, red where they harm."""
    folder = RunFolder(run)
    with folder.read() as ledger:
        pivots = read_pivots(folder.require_pivots())
        if as_json:
            for pivot in pivots[:limit]:
                sys.stdout.write(f"{json.dumps(pivot, ensure_ascii=False)}\n")
        elif full:
            print_completions(ledger, pivots, tokenizer_of(ledger), limit)
        else:
            print_pivots(pivots, limit)
