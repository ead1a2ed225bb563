"""`python -m tests.bench server`: what the way through gRPC costs, beside the same engine in process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from steering_client import AsyncClient
from tests.bench.engine.models import MODELS
from tests.bench.server.measure import calls_per_second, first_tokens, stream_throughput
from tests.bench.server.serving import make_model, served

STREAMS: Final = 32
_TIMED_MODEL: Final = "bundled"
_FIRST_TOKEN_LENGTH: Final = 8


async def bench_server(
    names: Sequence[str],
    runs: int,
    tokens: int | None,
    console: Console,
    *,
    pairs: int = 300,
    calls: int = 3200,
) -> dict[str, Any]:
    """Measures servers of the named ones of `MODELS`.

    Args:
        names: Of the models.
        runs: Timed pairs of batches, and rounds of calls.
        tokens: Tokens of each stream; None takes the model's own number.
        console: Where findings are told.
        pairs: Pairs of first tokens.
        calls: Calls of a round.

    Returns:
        `ttft_over_engine_ms`: what gRPC adds to the time to the first token, by model (the bundled one only): `median`
        and `p99` of the differences of pairs, `pairs`, and the medians of both arms.
        `stream_over_engine`: throughput of 32 streams through gRPC over that in process, by model, as `median`, `min`,
        `max` and `runs`, with tokens per second of both arms (medians) and tokens per stream.
        `get_model_calls_per_second`: by calls in flight, as `median`, `min`, `max` and `runs`.
    """
    report: dict[str, Any] = {}
    for name in names:
        length = tokens or MODELS[name].tokens
        model = make_model(name, STREAMS, length)
        try:
            with served(name, STREAMS, length) as address:
                async with AsyncClient(address) as client:
                    await client.wait_ready()
                    compared = await stream_throughput(model, client, STREAMS, length, runs)
                    report.setdefault("stream_over_engine", {})[name] = {
                        **compared.speeds.summary,
                        "tokens_per_stream": length,
                        "tokens_per_second": statistics.median(compared.speeds.changed),
                        "engine_tokens_per_second": statistics.median(compared.speeds.baseline),
                    }
                    if name == _TIMED_MODEL:
                        first = await first_tokens(model, client, pairs, _FIRST_TOKEN_LENGTH)
                        report["ttft_over_engine_ms"] = {name: first.summary}
                        report["get_model_calls_per_second"] = await _calls(client, calls, runs)
        finally:
            await model.close()
    console.print(_table(report))
    return report


async def _calls(client: AsyncClient, calls: int, runs: int) -> dict[str, dict[str, float | int]]:
    found = {}
    for in_flight in (1, STREAMS):
        await calls_per_second(client.model, calls // 10, in_flight)  # warms up
        rates = [await calls_per_second(client.model, calls, in_flight) for _ in range(runs)]
        found[str(in_flight)] = {
            "median": statistics.median(rates),
            "min": min(rates),
            "max": max(rates),
            "runs": runs,
        }
    return found


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="server: what gRPC costs", title_justify="left", box=SIMPLE_HEAD)
    for column in ("figure", "of", "value"):
        table.add_column(column, no_wrap=column == "figure")
    for name, own in report.get("ttft_over_engine_ms", {}).items():
        value = (
            f"{own['median']:.2f} ms (p99 {own['p99']:.2f}): "
            f"{own['served_median']:.2f} beside {own['engine_median']:.2f}"
        )
        table.add_row("ttft_over_engine_ms", f"{name}, {own['pairs']} pairs", value)
    for name, own in report["stream_over_engine"].items():
        speeds = f"{own['tokens_per_second']:,.0f} beside {own['engine_tokens_per_second']:,.0f} tokens/s"
        value = f"{own['median']:.2f} ({own['min']:.2f} to {own['max']:.2f}): {speeds}"
        table.add_row("stream_over_engine", f"{name}, {STREAMS} x {own['tokens_per_stream']}", value)
    for in_flight, own in report.get("get_model_calls_per_second", {}).items():
        value = f"{own['median']:,.0f} ({own['min']:,.0f} to {own['max']:,.0f})"
        table.add_row("get_model_calls_per_second", f"{in_flight} in flight", value)
    return table
