"""What `pts vectors` prints of vectors and candidates: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.vectors.candidates import Candidates
from steering_pts.vectors.pipeline import VectorReport


def print_vectors(report: VectorReport, *, as_json: bool) -> None:
    """The candidates, the vector files that were written of them as they are, and what was left out."""
    if as_json:
        vectors = [{**dataclasses.asdict(made), "path": str(made.path)} for made in report.vectors]
        values = {
            "vectors": vectors,
            "candidates": candidate_values(report.candidates),
            "left_out": report.left_out,
        }
        sys.stdout.write(json.dumps(values) + "\n")
        return
    console = Console()
    print_candidates(report.candidates)
    if report.vectors:
        table = Table(
            title="vectors, not calibrated",
            title_justify="left",
            caption="`pts calibrate` chooses method, block, strength and trigger on validation problems",
            caption_justify="left",
        )
        for name in ("name", "method", "block", "strength", "pivots"):
            table.add_column(name, no_wrap=True)
        for made in report.vectors:
            table.add_row(made.name, made.method, str(made.block), f"{made.strength:.3g}", str(made.events))
        console.print(table)
    else:
        console.print("no vectors: nothing was confirmed often enough")
    for sentence in report.left_out:
        console.print(Text(f"left out: {sentence}"))


def candidate_values(groups: Sequence[Candidates]) -> list[dict[str, Any]]:
    """The candidates for programs."""
    return [
        {
            "name": group.name,
            "events": group.events,
            "min_match": group.min_match,
            "files": {method: str(path) for method, path in group.files.items()},
            "strengths": {method: one.calibrated_strength for method, one in group.metadata.items()},
            "reliability": {method: one.split_half_cosine for method, one in group.metadata.items()},
        }
        for group in groups
    ]


def print_candidates(groups: Sequence[Candidates]) -> None:
    """The candidates for people; nothing where there are none."""
    if groups:
        Console().print(_candidate_table(groups))


def _candidate_table(groups: Sequence[Candidates]) -> Table:
    """Each group's methods, and at each block how alike what two halves of the problems make of it is."""
    blocks = sorted(
        {b for group in groups for one in group.metadata.values() for b in one.calibrated_strength}
    )
    table = Table(
        title="candidates, with the split-half reliability of each method at each block",
        title_justify="left",
        caption="ids: so many before a decision are looked for; -: they can't tell",
        caption_justify="left",
    )
    table.add_column("group", no_wrap=True)
    table.add_column("pivots", justify="right")
    table.add_column("ids", justify="right")
    table.add_column("method", no_wrap=True)
    for block in blocks:
        table.add_column(str(block), justify="right", no_wrap=True)
    for group in groups:
        first = (group.name, str(group.events), str(group.min_match or "-"))
        for method, metadata in group.metadata.items():
            found = metadata.split_half_cosine
            table.add_row(*first, method, *(f"{found[b]:.2f}" if b in found else "-" for b in blocks))
            first = ("", "", "")
    return table
