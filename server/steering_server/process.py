"""A server process: loads the model and its vectors, serves until a signal, and stops in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from steering_engine.alias import DEMO, resolve_model
from steering_engine.model import EngineLimits, SteeredModel
from steering_server.config import ServerConfig
from steering_server.logs import adopt_library_loggers
from steering_server.serving import SteeringServer

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_server(config: ServerConfig, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the grace.

    Args:
        config: The configuration.
        announce: Called once with a line for people and parent processes when the server is ready.

    Raises:
        StartError: The port is taken, or the host has no such address.
        ModelError: The model can't be loaded or run.
    """
    for number in _SIGNALS:
        signal.signal(number, _leave)  # nothing is being served yet, so nothing needs a grace
    adopt_library_loggers()
    model = load_model(config)
    asyncio.run(_serve(config, model, announce))


def load_model(config: ServerConfig) -> SteeredModel:
    """Loads the model and the directory's vectors; those that can't be loaded are reported and left out.

    Raises:
        ModelError: The model can't be loaded or run.
    """
    limits: dict[str, Any] = {
        "max_concurrent_requests": config.max_concurrent,
        "max_context_tokens": config.max_context,
        "cache_tokens": config.cache_tokens,
        "default_max_tokens": config.default_max_tokens,
        "deterministic": config.deterministic,
        "cuda_graphs": config.cuda_graphs,
        "offload_gib": config.offload_gib,
        "vector_table_bytes": config.vector_table_bytes,
    }
    model = SteeredModel.load(
        resolve_model(config.model),
        name=DEMO if config.model == DEMO else "",
        device=config.device,
        dtype=config.dtype,
        tensor_parallel=config.tensor_parallel,
        limits=EngineLimits(**{name: value for name, value in limits.items() if value is not None}),
    )
    if config.vectors is not None:
        _, failures = model.vectors.load_directory(config.vectors)
        for failure in failures:
            _log.warning("vector not loaded: %s", failure)
    return model


async def _serve(config: ServerConfig, model: SteeredModel, announce: Callable[[str], None]) -> None:
    try:
        server = SteeringServer(model, config)
        stop = _stop_signal(server.hurry)
        address = await server.start()
        count = len(model.vectors.infos())
        name = model.info.facts.name
        announce(
            f"steering-server: listening on {address} ({name}, {count} vector{'' if count == 1 else 's'})"
        )
        await stop.wait()
        _log.info("stopping")
        await server.stop()
    finally:
        await model.close()  # safe to call twice


def _stop_signal(hurry: Callable[[], None]) -> asyncio.Event:
    """An event that the first signal sets; the second one calls `hurry`, and a third one ends the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def second() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        hurry()

    def first() -> None:
        for number in _SIGNALS:
            loop.add_signal_handler(number, second)
        stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, first)
    return stop


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
