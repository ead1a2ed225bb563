"""A server process: loads the model and its vectors, serves until a signal, and stops in good order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from steering_engine.alias import DEMO, resolve_model
from steering_engine.errors import VectorFileError
from steering_engine.model import EngineLimits, SteeredModel
from steering_server.address import check_address
from steering_server.config import ServerConfig
from steering_server.errors import StartError, faults_of
from steering_server.logs import adopt_library_loggers
from steering_server.rpc.default_steering import read_default_steering
from steering_server.security.credentials import Credentials
from steering_server.serving import SteeringServer
from steering_server.signals import ending_signals
from steering_server.tracing import check_tracing

_log = logging.getLogger(__name__)


def run_server(config: ServerConfig, announce: Callable[[str], None]) -> None:
    """Serves until a signal; a second one ends the grace. What they do before it serves is the caller's.

    Args:
        config: The configuration.
        announce: Called once with a line for people and parent processes when the server is ready.

    Raises:
        StartError: The port is taken, or the host has no such address.
        ModelError: The model can't be loaded or run.
    """
    adopt_library_loggers()
    credentials = _prepared(config)
    model = load_model(config)
    for failure in load_vectors(config, model):
        _log.warning("vector not loaded: %s", failure)
    asyncio.run(_serve(config, credentials, model, announce))


def _prepared(config: ServerConfig) -> Credentials:
    """Does what can be done before the model is loaded: better to fail now than minutes later.

    Raises:
        StartError: All that is wrong.
    """
    credentials: list[Credentials] = []
    steps: list[Callable[[], object]] = [
        lambda: check_address(config.host, config.port),
        lambda: credentials.append(Credentials(config)),
        lambda: check_tracing(config),
    ]
    if (metrics_port := config.metrics_port) is not None:
        steps.append(lambda: check_address(config.metrics_host, metrics_port))
    if (default_steering := config.default_steering) is not None:
        steps.append(lambda: read_default_steering(default_steering))
    if faults := faults_of(*steps):
        raise StartError("; ".join(faults))
    return credentials[0]


def load_model(config: ServerConfig) -> SteeredModel:
    """Loads the model that a configuration names.

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
        "vector_memory_bytes": config.vector_memory_bytes,
    }
    return SteeredModel.load(
        resolve_model(config.model),
        name=DEMO if config.model == DEMO else "",
        device=config.device,
        dtype=config.dtype,
        tensor_parallel=config.tensor_parallel,
        limits=EngineLimits(**{name: value for name, value in limits.items() if value is not None}),
    )


def load_vectors(config: ServerConfig, model: SteeredModel) -> list[VectorFileError]:
    """Loads the vectors of the configuration's directory; returns what keeps others of it from being loaded."""
    if config.vectors is None:
        return []
    _, failures = model.vectors.load_directory(config.vectors)
    return failures


async def _serve(
    config: ServerConfig, credentials: Credentials, model: SteeredModel, announce: Callable[[str], None]
) -> None:
    try:
        server = SteeringServer(model, config, credentials)
        stop = _stop_signal(server.hurry)
        address = await server.start()
        count = model.vectors.count()
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
    signals = ending_signals()

    def second() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
        hurry()

    def first() -> None:
        for number in signals:
            loop.add_signal_handler(number, second)
        stop.set()

    for number in signals:
        loop.add_signal_handler(number, first)
    return stop
