"""What `steering-server check` does: everything that a start would do, but listen on its ports."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from steering_engine.errors import EngineError, VectorFileError
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import check_inside, load_vector
from steering_server.address import check_address
from steering_server.config import ServerConfig
from steering_server.errors import faults_of
from steering_server.logs import adopt_library_loggers
from steering_server.process import load_model, load_vectors
from steering_server.rpc.default_steering import check_default_steering, read_default_steering
from steering_server.security.credentials import Credentials
from steering_server.tracing import check_tracing


def check(config: ServerConfig) -> tuple[list[str], str]:
    """Judges credentials, model, vectors and default steering.

    Returns:
        Everything that is wrong, and one line about what was found.
    """
    adopt_library_loggers()
    # Whether this machine has the addresses; their ports may be those of a server that runs meanwhile.
    hosts = [config.host, *([config.metrics_host] if config.metrics_port is not None else [])]
    faults = faults_of(
        *(partial(check_address, host, 0) for host in dict.fromkeys(hosts)),
        lambda: Credentials(config),
        lambda: check_tracing(config),
    )
    summary = ""
    try:
        model = load_model(config)
    except EngineError as error:
        faults.append(str(error))
        faults += _unreadable(config.vectors)
        if (path := config.default_steering) is not None:
            faults += faults_of(lambda: read_default_steering(path))
    else:
        try:
            faults += [f"vector not loaded: {failure}" for failure in load_vectors(config, model)]
            faults += faults_of(lambda: _check_default_steering(config, model))
            count = model.vectors.count()
            summary = f"all is well ({model.info.facts.name}, {count} vector{'' if count == 1 else 's'})"
        finally:
            asyncio.run(model.close())
    return faults, summary


def _check_default_steering(config: ServerConfig, model: SteeredModel) -> None:
    if config.default_steering is not None:
        check_default_steering(config.default_steering, read_default_steering(config.default_steering), model)


def _unreadable(directory: Path | None) -> list[str]:
    """What is wrong with the vector files themselves, where there is no model to load them for."""
    if directory is None:
        return []
    faults = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            check_inside(path, directory)
            load_vector(path)
        except VectorFileError as error:
            faults.append(f"vector not loaded: {error}")
        except OSError as error:
            faults.append(f"vector not loaded: {path.name}: {error.strerror or error}")
    return faults
