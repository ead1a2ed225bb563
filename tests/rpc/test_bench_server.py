"""The server's benchmark: that it compares what it says, and reports under its keys. Nothing here depends on time."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.bench.server.bench import bench_server
from tests.bench.server.measure import FirstTokens, calls_per_second


async def test_a_server_in_a_process_of_its_own_is_measured_beside_an_engine() -> None:
    console = Console(file=io.StringIO(), width=200)
    report = await bench_server(["bundled"], 1, 2, console, pairs=4, calls=32)
    assert set(report) == {"ttft_over_engine_ms", "stream_over_engine", "get_model_calls_per_second"}
    first = report["ttft_over_engine_ms"]["bundled"]
    assert first["pairs"] == 4
    assert first["median"] <= first["p99"]
    streams = report["stream_over_engine"]["bundled"]
    assert streams["tokens_per_stream"] == 2
    ratio = streams["tokens_per_second"] / streams["engine_tokens_per_second"]
    assert streams["median"] == pytest.approx(ratio)
    assert set(report["get_model_calls_per_second"]) == {"1", "32"}
    assert "stream_over_engine" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_added_is_told_in_milliseconds_pair_by_pair() -> None:
    served_seconds = tuple(0.010 + number / 1000 for number in range(101))
    summary = FirstTokens(served_seconds, (0.008,) * 101).summary
    assert summary["pairs"] == 101
    assert summary["median"] == pytest.approx(52)
    assert summary["p99"] == pytest.approx(101)
    assert (summary["served_median"], summary["engine_median"]) == (pytest.approx(60), pytest.approx(8))


async def test_calls_are_counted_as_they_are_made() -> None:
    made: list[int] = []

    async def call() -> None:
        made.append(1)

    assert await calls_per_second(call, calls=10, in_flight=3) > 0
    assert len(made) == 9
