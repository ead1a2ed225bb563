"""The command `pts export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, cast

import typer

from steering_engine.vectors.schema import SteeringVector
from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.errors import LedgerError
from steering_pts.export import FORMATS, TABLES, RowTable, lines_of, with_text, write_parquet
from steering_pts.export.writers import Format
from steering_pts.interop.codelion.exporting import PATTERNS, Version
from steering_pts.interop.exports import (
    LAYOUTS,
    TABLE_LAYOUTS,
    TableOptions,
    finished_at,
    layout_table,
    vector_files,
    write_control_vectors,
)
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.export import write_atomically


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of the run, finished or not; for gguf also a vector file, or a folder of them."
        ),
    ],
    what: Annotated[str | None, typer.Option(help=f"{', '.join(TABLES)}; pivots if not given.")] = None,
    to: Annotated[str | None, typer.Option(help=f"The layout of another tool: {', '.join(LAYOUTS)}.")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)}; by the name of --out, else jsonl.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write (for several gguf files a folder); else standard output."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Text beside token ids, by the tokenizer of the run's model.")
    ] = False,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Vector files for codelion-vectors and gguf; RUN/vectors if not given."),
    ] = None,
    codelion_version: Annotated[int, typer.Option(help="Version of codelion's data sets, 1 or 2.")] = 1,
    pattern: Annotated[
        str | None,
        typer.Option(
            help=f"Kind of reasoning for codelion-vectors: {', '.join(PATTERNS)}; told from each pivot if not given."
        ),
    ] = None,
    block: Annotated[list[int] | None, typer.Option(help="gguf: only these blocks.")] = None,
    with_block_0: Annotated[
        bool, typer.Option("--with-block-0", help="gguf: keep block 0, which llama.cpp can't read.")
    ] = False,
    model_hint: Annotated[
        str | None, typer.Option(help="gguf: the model's architecture; asked of the model if not given.")
    ] = None,
) -> None:
    """Write what a run holds: as a table of ours (--what), or in the layout of another tool (--to).

    A table has one line or row for each pivot, candidate, completion, rollout or problem. Lists and objects are JSON
    text in CSV and native in the other formats. A file is replaced only when all of the new one is written.
    """
    if what is not None and to is not None:
        raise LedgerError("--what is for our own tables, --to for other tools' layouts; give one of them")
    if to == "gguf":
        _control_vectors(run, vectors, out, model_hint, block, with_block_0=with_block_0)
        return
    kind = _format(format, out)
    if what is not None and what not in TABLES:
        raise LedgerError(f"unknown table {what!r}; expected {', '.join(TABLES)}")
    folder = RunFolder(run)
    with folder.read() as ledger:
        if to is None:
            table = TABLES[what or "pivots"](ledger)
            if text:
                table = with_text(table, tokenizer_of(ledger))
        else:
            table = laid_out(to, folder, ledger, vectors, codelion_version, pattern)
        write_table(table, kind, out)


def laid_out(
    to: str,
    folder: RunFolder,
    ledger: LedgerReader,
    vectors: Path | None,
    version: int,
    pattern: str | None,
    model: str | None = None,
) -> RowTable:
    """A run as a table in another tool's layout; its model is called as the run calls it if not given.

    Raises:
        PtsError: There is no such layout, or it does not fit the run.
    """
    if to not in TABLE_LAYOUTS:
        raise LedgerError(f"unknown layout {to!r}; expected {', '.join(LAYOUTS)}")
    options = TableOptions(cast("Version", version), finished_at(folder.pivots), pattern, model)
    return layout_table(
        to,
        ledger,
        tokenizer_of(ledger),
        lambda: _with_contexts(vectors or folder.vectors),
        options,
    )


def _with_contexts(path: Path) -> list[SteeringVector]:
    """Vectors that can have rows; those that can't are named, for nothing in the table says that they are missing."""
    found = []
    for file, vector in vector_files(path):
        if vector.contexts:
            found.append(vector)
        else:
            sys.stderr.write(
                f"{file}: left out, since it records no contexts, by which its pivots are known\n"
            )
    return found


def write_table(table: RowTable, kind: Format, out: Path | None) -> None:
    """Writes a table to a file, or its lines to standard output.

    Raises:
        LedgerError: It can't be written.
    """
    if kind == "parquet":
        if out is None:
            raise LedgerError("Parquet is not for standard output; name a file with --out")
        write_parquet(table, out)
    elif out is not None:
        write_atomically(out, lines_of(table, kind))
    else:
        _print(lines_of(table, kind))


def _control_vectors(
    run: Path,
    vectors: Path | None,
    out: Path | None,
    model_hint: str | None,
    block: list[int] | None,
    *,
    with_block_0: bool,
) -> None:
    if out is None:
        raise LedgerError("control vectors are binary files; name a file or a folder with --out")
    own = RunFolder(run).vectors
    source = vectors or (own if own.is_dir() else run)
    if not source.exists():
        raise LedgerError(f"{source}: there is no such file or folder")
    written = write_control_vectors(
        source, out, model_hint=model_hint, blocks=block or (), with_block_0=with_block_0
    )
    for path in written:
        sys.stdout.write(f"{path}\n")


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
