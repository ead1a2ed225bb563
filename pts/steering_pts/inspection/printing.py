"""A vector file in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.inspection.facts import VectorFacts, metadata_rows
from steering_pts.inspection.lens import NearToken
from steering_pts.inspection.looking import Inspection
from steering_pts.report.texts import clean, shown_token

_MOST_IN_MATRIX: Final = 12
_CONTEXT_CHARACTERS: Final = 100
_CONTEXT_IDS: Final = 24


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints everything, each part only where the file has something for it."""
    _print_metadata(found, console)
    _print_blocks(found.facts, console)
    _print_cosines(found.facts, console)
    _print_nearest(found, console)
    _print_triggers(found, console)
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def _print_metadata(found: Inspection, console: Console) -> None:
    console.print(Text(str(found.path), style="bold"))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = metadata_rows(found.vector)
    settings = rows.pop("discovery_settings")
    lift = rows.pop("held_out_lift")
    for name, value in rows.items():
        if value not in ("", None, {}, []):
            table.add_row(name.replace("_", " "), Text(_plain(value)))
    table.add_row(
        "held-out lift",
        "not measured"
        if lift is None
        else f"{lift['lift']:+.3f} ({lift['low95']:+.3f} … {lift['high95']:+.3f}), from {lift['unsteered']:.3f} to "
        f"{lift['steered']:.3f} on {lift['problems']:,} {lift['split']} problems",
    )
    if settings:
        table.add_row(
            "discovery settings", Text(", ".join(f"{key} {_plain(v)}" for key, v in settings.items()))
        )
    table.add_row("sha256", found.vector.sha256)
    console.print(table)
    console.print()


def _print_blocks(facts: VectorFacts, console: Console) -> None:
    table = _table(
        console,
        "directions, in residual units",
        "block",
        "strength",
        "residual norm",
        "ratio",
        "split-half cosine",
    )
    for row in facts.blocks:
        table.add_row(
            str(row.block),
            f"{row.strength:.4g}",
            f"{row.residual_norm:.4g}",
            f"{row.relative:.3f}",
            _maybe(row.reliability, "+.3f"),
        )
    console.print(table)


def _print_cosines(facts: VectorFacts, console: Console) -> None:
    blocks = [row.block for row in facts.blocks]
    if len(blocks) < 2:
        return
    if len(blocks) > _MOST_IN_MATRIX:  # a larger matrix fits no terminal; --json has it
        table = _table(console, "cosine to the next direction (all: --json)", "blocks", "cosine")
        for place in range(len(blocks) - 1):
            table.add_row(f"{blocks[place]}, {blocks[place + 1]}", f"{facts.cosines[place][place + 1]:+.3f}")
    else:
        table = _table(console, "cosine between directions", "block", *map(str, blocks))
        for block, cosines in zip(blocks, facts.cosines, strict=True):
            table.add_row(str(block), *(f"{cosine:+.3f}" for cosine in cosines))
    console.print(table)


def _print_nearest(found: Inspection, console: Console) -> None:
    if found.nearest is None:
        return
    console.print(
        Text("nearest tokens (logit lens with the final norm; standard deviations)", style="italic")
    )
    table = Table()
    table.add_column("block", justify="right")
    table.add_column("raised", overflow="fold")
    table.add_column("lowered", overflow="fold")
    for block, tokens in sorted(found.nearest.items()):
        table.add_row(str(block), _tokens(tokens.raised), _tokens(tokens.lowered))
    console.print(table)


def _print_triggers(found: Inspection, console: Console) -> None:
    facts = found.facts
    if facts.probes:
        table = _table(
            console, "probes", "block", "AUC", "threshold", "bias", "weight norm", "cosine to direction"
        )
        for probe in facts.probes:
            table.add_row(
                str(probe.block),
                _maybe(probe.auc, ".4f"),
                _maybe(probe.threshold, ".4f"),
                f"{probe.bias:+.4g}",
                f"{probe.weight_norm:.4g}",
                _maybe(probe.cosine_to_direction, "+.3f"),
            )
        console.print(table)
    if facts.centroids:
        table = _table(
            console, "centroids", "block", "count", "norms", "least cosine between", "fires from cosine"
        )
        for one in facts.centroids:
            table.add_row(
                str(one.block),
                str(one.count),
                f"{one.least_norm:.4g} … {one.greatest_norm:.4g}",
                _maybe(one.least_cosine_between, "+.3f"),
                _maybe(one.min_cosine, "+.3f"),
            )
        console.print(table)
    if facts.contexts:
        console.print(
            f"{facts.contexts:,} contexts of {facts.shortest_context} to {facts.longest_context} tokens; the shortest "
            f"match is {found.vector.metadata.context_min_match}"
        )
        for context in found.contexts:
            if context.text is None:
                ids = " ".join(map(str, context.ids[-_CONTEXT_IDS:]))
                console.print(Text(f"  ids {'… ' * (len(context.ids) > _CONTEXT_IDS)}{ids}"))
            else:
                text = context.text[-_CONTEXT_CHARACTERS:]
                console.print(Text(f"  {'…' * (len(context.text) > len(text))}{text!r}"))
        if facts.contexts > len(found.contexts):
            console.print(f"  and {facts.contexts - len(found.contexts):,} more (--contexts)")


def _table(console: Console, title: str, *columns: str) -> Table:
    # A title of rich's own would be broken to the width of the columns.
    console.print(Text(title, style="italic"))
    table = Table()
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _tokens(tokens: Sequence[NearToken]) -> Text:
    return Text("  ").join(
        Text(shown_token(token.token)).append(f"\u00a0{token.score:+.1f}", style="dim") for token in tokens
    )


def _maybe(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items() if part is not None)
    return clean(str(value))
