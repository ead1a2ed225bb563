"""The benchmark of discovery: every scenario with every method, one row of figures each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from steering_pts.seeds import derive_seed
from tests.bench.discovery.measure import Row, measure
from tests.bench.discovery.methods import DEFAULTS, METHODS
from tests.bench.discovery.traces import SCENARIOS, draw_traces

TRACES: Final = 240
SEED: Final = 20_261

_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def bench_discovery(console: Console, traces: int = TRACES) -> dict[str, dict[str, Row]]:
    """Runs everything on all cores and prints it; returns the rows by scenario and method."""
    # The search takes longest, and longest where there are most forks: it goes first.
    jobs = sorted(
        ((scenario.name, method) for scenario in SCENARIOS for method in METHODS),
        key=lambda job: (not job[1].startswith("pivotal"), job[0] != "planted_35"),
    )
    rows: dict[tuple[str, str], Row] = {}
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        running = {pool.submit(run_row, *job, traces): job for job in jobs}
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("searching planted traces", total=len(jobs))
            for done in as_completed(running):
                rows[running[done]] = done.result()
                progress.advance(task)
    report = {
        scenario.name: {method: rows[scenario.name, method] for method in METHODS} for scenario in SCENARIOS
    }
    for scenario, own in report.items():
        console.print(rows_table(f"{scenario}: {traces} traces", own))
    return report


def run_row(scenario_name: str, method: str, traces: int) -> Row:
    """One scenario with one method; every method gets the same traces."""
    scenario = next(own for own in SCENARIOS if own.name == scenario_name)
    planted = draw_traces(scenario, traces, SEED)
    started = time.perf_counter()
    searched = METHODS[method](planted, derive_seed(SEED, scenario_name, method))
    return measure(searched, DEFAULTS.tau, DEFAULTS.delta0, time.perf_counter() - started)


def rows_table(title: str, rows: Mapping[str, Row]) -> Table:
    """The rows of one scenario, by method."""
    columns = (
        *("recall", "recall_95", "fdr", "fdr_95", "false_per_trace", "sign_errors", "bias", "coverage95"),
        *("rollouts", "kilotokens", "seconds"),
    )
    table = Table(title=title, title_justify="left")
    for name in ("method", *columns):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, row in rows.items():
        table.add_row(method, *(_cell(row[name]) for name in columns))
    return table


def _cell(value: float | list[float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(f"{bound:.3f}" for bound in value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute on one thread: there is one for every core already."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
