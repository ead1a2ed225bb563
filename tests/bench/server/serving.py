"""The measured server: a process of its own, as an operator runs it, with one of the bench's models.

`python -m tests.bench.server.serving MODEL CONCURRENT TOKENS` serves until its standard input ends. It is the real
server; only the model is made in memory, where `steering-server` loads one from a folder.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.model import EngineLimits, SteeredModel
from steering_server.config import ServerConfig
from steering_server.serving import SteeringServer
from tests.bench.engine.models import MODELS
from tests.bench.engine.traffic import PROMPT_TOKENS

_ROOT: Final = Path(__file__).parents[3]


def make_model(name: str, concurrent: int, tokens: int) -> SteeredModel:
    """One of `MODELS` with its engine on the CPU, with room for so many requests of so many generated tokens."""
    limits = EngineLimits(
        max_concurrent_requests=concurrent,
        cache_tokens=concurrent * (PROMPT_TOKENS + tokens + 2 * PAGE_TOKENS),
    )
    return SteeredModel(MODELS[name].load("cpu"), "bench", limits)


@contextmanager
def served(name: str, concurrent: int, tokens: int) -> Iterator[str]:
    """Starts a server with what `make_model` makes, and yields its address; it ends at the end.

    Raises:
        RuntimeError: It did not start; its standard error says why.
    """
    command = [sys.executable, "-m", __spec__.name, name, str(concurrent), str(tokens)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not (address := process.stdout.readline().strip()):
            raise RuntimeError(f"the server of {name} did not start")
        try:
            yield address
        finally:
            process.stdin.close()


async def _serve(name: str, concurrent: int, tokens: int) -> None:
    model = make_model(name, concurrent, tokens)
    # The model is only named, not loaded from there.
    server = SteeringServer(model, ServerConfig(model=name, port=0))
    print(await server.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
