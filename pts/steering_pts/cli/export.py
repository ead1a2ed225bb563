"""The command `pts export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.errors import LedgerError
from steering_pts.export import FORMATS, TABLES, lines_of, with_text, write_parquet
from steering_pts.export.writers import Format
from steering_pts.ledger.export import write_atomically


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run, finished or not.")],
    what: Annotated[str, typer.Option(help=f"{', '.join(TABLES)}.")] = "pivots",
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)}; by the name of --out, else jsonl.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Text beside token ids, by the tokenizer of the run's model.")
    ] = False,
) -> None:
    """Write what a run holds as a table: one line or row for each pivot, candidate, completion, rollout or problem.

    Lists and objects are JSON text in CSV and native in the other formats. A file is replaced only when all of the
    new one is written.
    """
    kind = _format(format, out)
    if what not in TABLES:
        raise LedgerError(f"unknown table {what!r}; expected {', '.join(TABLES)}")
    with RunFolder(run).read() as ledger:
        table = TABLES[what](ledger)
        if text:
            table = with_text(table, tokenizer_of(ledger))
        if kind == "parquet":
            if out is None:
                raise LedgerError("Parquet is not for standard output; name a file with --out")
            write_parquet(table, out)
        elif out is not None:
            write_atomically(out, lines_of(table, kind))
        else:
            _print(lines_of(table, kind))


def _format(named: str | None, out: Path | None) -> Format:
    if named is None:
        suffix = out.suffix.lower().removeprefix(".") if out is not None else "jsonl"
        if suffix not in FORMATS:
            raise LedgerError(f"{out}: its name says no format; name one with --format: {', '.join(FORMATS)}")
        return suffix
    if named not in FORMATS:
        raise LedgerError(f"unknown format {named!r}; expected {', '.join(FORMATS)}")
    return named


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it, `head` say, has seen enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
