"""The progress display of a run: phase, rollouts done, speed and time left, on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]
"""Hears of one finished item, with the tokens that it took."""


class RunProgress:
    """Bars on standard error; silent when it is no terminal, except for one line at the end of every phase."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    @contextmanager
    def phase(self, name: str, total: int, known: int = 0, *, at_most: bool = False) -> Iterator[Advance]:
        """A phase; call the yielded function once for each new item.

        Args:
            name: What is being done.
            total: Items in all.
            known: How many of them a run that goes on has already.
            at_most: It may well end before the total, so no time left is told.
        """
        tokens = 0
        done = 0
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.completed:,} of " + ("at most " if at_most else "") + "{task.total:,}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            *(() if at_most else (TimeRemainingColumn(),)),
        )
        bar = Progress(*columns, console=self._console, disable=not sys.stderr.isatty(), transient=True)
        with bar:
            task = bar.add_task(name, total=total, completed=known, rate="")

            def advance(more_tokens: int = 0) -> None:
                nonlocal tokens, done
                tokens += more_tokens
                done += 1
                bar.update(task, advance=1, rate=_rate(done, tokens, bar.tasks[task].elapsed or 0.0))

            yield advance
        if done:  # a run that goes on skips what the ledger holds
            self._console.print(
                f"{name}: {done}" + (f" ({tokens:,} tokens)" if tokens else ""), highlight=False
            )


def _rate(done: int, tokens: int, seconds: float) -> str:
    if not seconds:
        return ""
    return f"{done / seconds:,.1f}/s" + (f", {tokens / seconds:,.0f} tok/s" if tokens else "")
