"""What steering, traces, triggers and determinism cost the engine: ratios of throughput for each model."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from rich.console import Console

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel
from steering_engine.model import EngineLimits, SteeredModel
from tests.bench.engine.comparisons import COMPARISONS, Sizes, deterministic_over_fast
from tests.bench.engine.models import MODELS
from tests.bench.engine.report import Finding, engine_report, engine_table
from tests.bench.engine.traffic import PROMPT_TOKENS

Load = Callable[[], LoadedModel]
Tell = Callable[[Finding], None]


async def bench_engine(
    names: Sequence[str], device: str, runs: int, tokens: int | None, console: Console
) -> dict[str, object]:
    """Measures the named ones of `MODELS`, telling each finding as it comes; returns what `engine_report` does.

    Args:
        names: Of the models.
        device: Where they run.
        runs: Timed pairs of batches for each ratio.
        tokens: Tokens that each request generates; None takes the model's own number.
        console: Where findings are told.
    """
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        console.print(finding.sentence, highlight=False, soft_wrap=True)
        findings.append(finding)

    for name in names:
        setting = MODELS[name]
        load = functools.partial(setting.load, device)
        sizes = Sizes(tokens or setting.tokens, runs=runs)
        await measure_steering(name, load, sizes, tell)
        await measure_determinism(name, load, setting.deterministic_batches, sizes, tell)
    console.print(engine_table(findings))
    return engine_report(findings)


async def measure_steering(name: str, load: Load, sizes: Sizes, tell: Tell) -> None:
    """All of `COMPARISONS`, on one engine as it is by default."""
    async with _served(load, sizes, deterministic=None) as model:
        for comparison, compare in COMPARISONS.items():
            tell(Finding(comparison, (name,), await compare(model, sizes)))


async def measure_determinism(
    name: str, load: Load, batches: Sequence[int], sizes: Sizes, tell: Tell
) -> None:
    """Two engines, one of them deterministic, with batches of each of the numbers of requests."""
    if not batches:
        return
    key = deterministic_over_fast.__name__
    try:
        async with (
            _served(load, sizes, deterministic=True) as deterministic,
            _served(load, sizes, deterministic=False) as fast,
        ):
            for requests in batches:
                compared = await deterministic_over_fast(deterministic, fast, requests, sizes)
                tell(Finding(key, (name, str(requests)), compared))
    except ModelError as error:  # no device but a CPU can
        tell(Finding(key, (name,), str(error)))


@asynccontextmanager
async def _served(load: Load, sizes: Sizes, *, deterministic: bool | None) -> AsyncIterator[SteeredModel]:
    most = max(sizes.requests, sizes.many)
    limits = EngineLimits(
        max_concurrent_requests=most,
        cache_tokens=most * (PROMPT_TOKENS + sizes.tokens + 2 * PAGE_TOKENS),
        deterministic=deterministic,
    )
    model = SteeredModel(load(), "bench", limits)
    try:
        yield model
    finally:
        await model.close()
