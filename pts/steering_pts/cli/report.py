"""`pts report`: the page about a run."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from steering_pts.cli.options import Run
from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.ledger.export import write_atomically

SHOWN_COMPLETIONS = 30


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="File to write; RUN/report.html if not given.")] = None,
    completions: Annotated[
        int, typer.Option(help="Show at most this many completions, those with the strongest pivots.", min=1)
    ] = SHOWN_COMPLETIONS,
) -> None:
    """Write one HTML page about a run, finished or not: pivots, curves, calibration, evaluation, vectors.

    The page needs nothing but itself: no network, no script. What a run does not have yet is left out, with the command
    that makes it.
    """
    folder = RunFolder(run)
    path = out or folder.report
    size = write_page(folder, path, completions)
    Console(highlight=False).print(f"{path} ({size / 1000:,.0f} kB)", markup=False)


def write_page(folder: RunFolder, path: Path, completions: int = SHOWN_COMPLETIONS) -> int:
    """Writes the page about a run in one step; returns its size in bytes.

    Args:
        folder: The run.
        path: The file.
        completions: Completions shown at most.

    Raises:
        PtsError: The run can't be read, or the page not be written.
    """
    from steering_pts.report.page import PageOptions, report_page  # noqa: PLC0415 -- matplotlib takes a second

    state = folder.state()
    with folder.read() as ledger:
        page = report_page(
            folder.path,
            ledger,
            lambda: (tokenizer_of(ledger), tokenizer_of(ledger, skip_special_tokens=True)),
            PageOptions(str(state), state.finished, completions, dt.datetime.now(dt.UTC)),
        )
    write_atomically(path, [page])
    return len(page.encode())
