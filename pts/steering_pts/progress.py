"""The progress display of a run: phase, rollouts done, speed and time left, on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
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
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """A phase of `total` items; call the yielded function once for each."""
        tokens = 0
        done = 0
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self._console, disable=not sys.stderr.isatty(), transient=True)
        with bar:
            task = bar.add_task(name, total=total, rate="")

            def advance(more_tokens: int = 0) -> None:
                nonlocal tokens, done
                tokens += more_tokens
                done += 1
                elapsed = bar.tasks[task].elapsed or 0.0
                rate = f"{tokens / elapsed:,.0f} tok/s" if tokens and elapsed else ""
                bar.update(task, advance=1, rate=rate)

            yield advance
        if done:  # a run that goes on skips what the ledger holds
            self._console.print(
                f"{name}: {done}" + (f" ({tokens:,} tokens)" if tokens else ""), highlight=False
            )
