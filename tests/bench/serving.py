"""What steering costs while serving: steered batches against the same batch unsteered, interleaved in one run."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing

from rich.console import Console
from rich.table import Table

from steering_engine.alias import resolve_model
from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.model import EngineLimits, SteeredModel
from steering_engine.steering.compile import compile_plan
from steering_engine.vectors.file import encode_vector
from steering_spec import ContextTrigger, SteeringRule, SteeringSpec
from tests.support.vectors import random_vector

REQUESTS = 64
TOKENS = 96
ROUNDS = 7
DISTINCT = 64
CONTEXTS = 2_000


def _arms(model: SteeredModel) -> dict[str, Sequence[SteeringSpec | None]]:
    """The steering of each request, by arm."""
    blocks = range(model.loaded.block_count)
    for index in range(DISTINCT):
        data = encode_vector(random_vector(model.loaded, f"v{index}", list(blocks), seed=index, strength=1.0))
        model.vectors.load(f"v{index}", data)
    contexts = [[20 + i % 10, 20 + i // 10 % 10, 20 + i // 100 % 10, 20 + i // 1000] for i in range(CONTEXTS)]
    triggered = random_vector(model.loaded, "triggered", [1], contexts=contexts, min_match=4)
    model.vectors.load("triggered", encode_vector(triggered))

    def all_blocks(index: int) -> SteeringSpec:
        return SteeringSpec((SteeringRule(f"v{index}"),))

    def one_block(index: int) -> SteeringSpec:
        return SteeringSpec((SteeringRule(f"v{index}", layers=(1,)),))

    trigger = SteeringSpec((SteeringRule("triggered", trigger=ContextTrigger()),))
    return {
        "unsteered": [None] * REQUESTS,
        "1 vector, one block, every step": [one_block(0)] * REQUESTS,
        "64 vectors, one block, every step": [one_block(i % DISTINCT) for i in range(REQUESTS)],
        "64 vectors, all blocks, every step": [all_blocks(i % DISTINCT) for i in range(REQUESTS)],
        "context trigger, 2,000 contexts": [trigger] * REQUESTS,
    }


async def _round(model: SteeredModel, specs: Sequence[SteeringSpec | None], label: str) -> float:
    """Tokens per second of one batch."""

    async def one(index: int, spec: SteeringSpec | None) -> int:
        prompt = tuple(20 + (index * 7 + i) % 10 for i in range(16))
        request = EngineRequest(
            request_id=f"{label}-{index}",
            prompt_ids=prompt,
            sampling=Sampling(1.0, 1.0, 0, TOKENS, seed=index, stop_at_eos=False),
            plan=None if spec is None else compile_plan(spec, model.vectors, len(prompt)),
        )
        count = 0
        async with aclosing(model.engine.submit(request)) as chunks:
            async for chunk in chunks:
                count += len(chunk.tokens)
        return count

    started = time.perf_counter()
    counts = await asyncio.gather(*(one(index, spec) for index, spec in enumerate(specs)))
    return sum(counts) / (time.perf_counter() - started)


async def bench_serving() -> dict[str, object]:
    """Throughput of every arm, and its ratio to the unsteered batch of the same round."""
    limits = EngineLimits(max_concurrent_requests=REQUESTS)
    model = SteeredModel.load(resolve_model("demo"), device="cpu", limits=limits)
    try:
        arms = _arms(model)
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(ROUNDS + 1):
            for name, specs in arms.items():
                speed = await _round(model, specs, f"{name}-{number}")
                if number:  # the first round warms up
                    speeds[name].append(speed)
    finally:
        await model.close()
    ratios = {
        name: sorted(own / base for own, base in zip(values, speeds["unsteered"], strict=True))
        for name, values in speeds.items()
    }
    title = f"{REQUESTS} requests x {TOKENS} tokens on the bundled model, {ROUNDS} rounds"
    table = Table(title=title, title_justify="left")
    for name in ("arm", "tokens/s (median)", "ratio to unsteered: min", "median", "max"):
        table.add_column(name)
    for name, values in speeds.items():
        low, middle, high = ratios[name][0], statistics.median(ratios[name]), ratios[name][-1]
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}")
    Console().print(table)
    return {
        "requests": REQUESTS,
        "tokens": TOKENS,
        "rounds": ROUNDS,
        "arms": {
            name: {
                "tokens_per_second": statistics.median(values),
                "ratio": {
                    "min": ratios[name][0],
                    "median": statistics.median(ratios[name]),
                    "max": ratios[name][-1],
                },
            }
            for name, values in speeds.items()
        },
    }
