"""The command `pts push`: exports on the Hugging Face Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from steering_pts.cli.export import laid_out
from steering_pts.cli.options import AsJson, Run
from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.errors import InteropError
from steering_pts.interop.exports import TABLE_LAYOUTS
from steering_pts.interop.hub.folder import dataset_folder, vectors_folder
from steering_pts.interop.hub.naming import shown_model
from steering_pts.interop.hub.upload import PushFolder, check_repository, upload

WHAT: Final = ("vectors", "gguf", *TABLE_LAYOUTS)


def push(
    run: Run,
    repository: Annotated[str, typer.Option("--repo", help="Where to: owner/name.")],
    what: Annotated[str, typer.Option(help=f"{', '.join(WHAT)}.")] = "vectors",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, and upload nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder; RUN/push/WHAT if not given.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Vector files; RUN/vectors if not given.")] = None,
    codelion_version: Annotated[int, typer.Option(help="Version of codelion's data sets, 1 or 2.")] = 1,
    pattern: Annotated[str | None, typer.Option(help="codelion-vectors: kind of reasoning.")] = None,
    with_block_0: Annotated[
        bool, typer.Option("--with-block-0", help="gguf: keep block 0, which llama.cpp can't read.")
    ] = False,
    model_hint: Annotated[
        str | None, typer.Option(help="gguf: the model's architecture; asked of the model if not given.")
    ] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier of the licence.")] = "Apache-2.0",
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an export with a card (model, data, settings, counts, intervals, limits), and upload it.

    Who is asking is what the Hub's library knows: `hf auth login`, or the variable HF_TOKEN. HF_ENDPOINT names another
    server than the Hub.
    """
    check_repository(repository)
    if what not in WHAT:
        raise InteropError(str(run), [f"unknown export {what!r}; expected {', '.join(WHAT)}"])
    folder = RunFolder(run)
    target = out or run / "push" / what
    source = vectors or folder.vectors
    with folder.read() as ledger:
        folder.require_pivots()
        made: PushFolder
        if what in TABLE_LAYOUTS:
            model = shown_model(str(ledger.settings().get("model", "")))
            table = laid_out(what, folder, ledger, vectors, codelion_version, pattern, model)
            decode = tokenizer_of(ledger)
            made = dataset_folder(target, what, table, ledger, decode, licence, [source])
        else:
            made = vectors_folder(
                target,
                source,
                ledger,
                licence,
                as_gguf=what == "gguf",
                model_hint=model_hint,
                with_block_0=with_block_0,
            )
    address = None if dry_run else upload(made, repository, private=private)
    if as_json:
        values = {"folder": str(made.path), "kind": made.kind, "uploaded": address}
        sys.stdout.write(json.dumps(values) + "\n")
    else:
        sys.stdout.write(
            f"{made.path}\n" + (f"{address}\n" if address else "dry run: nothing was uploaded\n")
        )
