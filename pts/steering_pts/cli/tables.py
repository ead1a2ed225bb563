"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.cli.run import RunFolder
from steering_pts.errors import LedgerError
from steering_pts.ledger import LedgerReader
from steering_pts.remaining import wanted_of

_CONTEXT_CHARACTERS = 48


def print_summary(folder: RunFolder, *, as_json: bool) -> None:
    """What a run has done, what is left of it, and what it has cost."""
    with folder.read() as ledger:
        summary, wanted = ledger.summary(), wanted_of(ledger)
    state = folder.state()
    if as_json:
        values = {
            "run": str(folder.path),
            "finished": state.finished,
            "process": state.process,
            **dataclasses.asdict(summary),
            "wanted": dataclasses.asdict(wanted),
        }
        sys.stdout.write(json.dumps(values) + "\n")
        return
    table = Table(title=str(folder.path), show_header=False, title_justify="left")
    explored, confirmed = summary.stages.get("explore", 0), summary.stages.get("confirm", 0)
    completions = sum(summary.completions.values())
    rows = {
        "state": str(state),
        "problems": f"{summary.problems:,}",
        "completions": f"{_done(completions, wanted.completions)} ({_verdicts(summary.completions)})",
        "searched": f"{summary.scored:,} of undecided problems",
        "rollouts, exploring": f"{explored:,} of at most {wanted.explore:,}" if wanted.explore else "none",
        "rollouts, confirming": _done(confirmed, wanted.confirm),
        "rollouts": f"{explored + confirmed:,} ({_verdicts(summary.rollouts)})",
        "tokens generated": f"{summary.completion_tokens + summary.rollout_tokens:,}",
        "oracle failures": f"{summary.oracle_failures:,}",
        "nominees": f"{summary.nominees:,}"
        + (f", {summary.unaffordable:,} of them beyond the budget" if summary.unaffordable else ""),
        "pivots": f"{summary.pivots:,}" if summary.pivots or state.finished else "told when all is confirmed",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _done(done: int, wanted: int) -> str:
    return f"{done:,}" if done >= wanted else f"{done:,} of {wanted:,}"


def _verdicts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()) if count) or "none"


def print_pivots(pivots: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Pivots as a table, the token in its context, the better token of the pair in green."""
    console = Console()
    table = Table(title=f"{len(pivots)} pivotal tokens", title_justify="left")
    for name in ("question", "context and token", "instead"):
        table.add_column(name, overflow="fold")
    for name in ("effect (95 %)", "p(token)", "q"):
        table.add_column(name, no_wrap=True, justify="right")
    for pivot in pivots[:limit]:
        good = pivot["delta"] > 0
        prefix = pivot["prefix"]
        context = Text(prefix if len(prefix) <= _CONTEXT_CHARACTERS else "…" + prefix[-_CONTEXT_CHARACTERS:])
        context.append(pivot["token"], style="bold green" if good else "bold red")
        other = pivot["rejected"] if good else pivot["chosen"]
        table.add_row(
            Text(pivot["question"][:60]),
            context,
            Text(repr(other), style="red" if good else "green"),
            f"{pivot['delta']:+.2f} ({pivot['low']:+.2f}…{pivot['high']:+.2f})",
            f"{pivot['probability']:.2f}",
            f"{pivot['q_value']:.2g}",
        )
    console.print(table)
    if len(pivots) > limit:
        console.print(f"… and {len(pivots) - limit} more (--limit)")


def print_completions(
    ledger: LedgerReader,
    pivots: Sequence[Mapping[str, Any]],
    decode: Callable[[Sequence[int]], str],
    limit: int,
) -> None:
    """Whole completions, each pivot coloured and followed by its effect."""
    console = Console()
    by_completion: dict[str, list[Mapping[str, Any]]] = {}
    for pivot in pivots:
        by_completion.setdefault(pivot["completion_id"], []).append(pivot)
    for completion_id, own in list(by_completion.items())[:limit]:
        completion = ledger.completion(completion_id)
        if completion is None:
            raise LedgerError(f"{ledger.path}: completion {completion_id} has a pivot, but is not there")
        text = Text()
        place = 0
        for pivot in sorted(own, key=lambda pivot: pivot["position"]):
            text.append(decode(completion.ids[place : pivot["position"]]))
            place = pivot["position"] + len(pivot["ids"])
            style = "bold green" if pivot["delta"] > 0 else "bold red"
            text.append(pivot["token"], style=f"{style} underline").append(
                f" [{pivot['delta']:+.2f}]", style=style
            )
        text.append(decode(completion.ids[place:]))
        console.print(
            Text(f"{own[0]['question']}", style="bold"), Text(f"  {completion.verdict}", style="dim")
        )
        console.print(text, soft_wrap=True)
        console.print()
    if len(by_completion) > limit:
        console.print(f"… and {len(by_completion) - limit} more (--limit)")
