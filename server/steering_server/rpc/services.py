"""The services of the API, put together."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from steering.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    vector_pb2,
    vector_pb2_grpc,
)
from steering_engine.model import SteeredModel
from steering_server.config import ServerConfig
from steering_server.metrics import Metrics
from steering_server.rpc.backlog import Backlog
from steering_server.rpc.generation import GenerationServicer
from steering_server.rpc.model import ModelServicer
from steering_server.rpc.turns import Turns
from steering_server.rpc.vectors import VectorServicer
from steering_spec import ServerStats, SteeringSpec


def add_services(
    server: grpc.aio.Server,
    model: SteeredModel,
    config: ServerConfig,
    backlog: Backlog,
    turns: Turns,
    metrics: Metrics,
    default_steering: SteeringSpec | None,
    stats: Callable[[], ServerStats],
) -> tuple[str, ...]:
    """Adds every service of `steering.v1` to a server; returns their full names."""
    generation = GenerationServicer(
        model,
        backlog,
        turns,
        metrics,
        stream_buffer=config.stream_buffer,
        default_steering=default_steering,
        log_prompts=config.log_prompts,
    )
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
    vectors = VectorServicer(model, config.vectors, default_steering)
    vector_pb2_grpc.add_VectorServiceServicer_to_server(vectors, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(model, stats), server)
    return tuple(service.full_name for service in api_services())


def api_services() -> tuple[ServiceDescriptor, ...]:
    """The services of `steering.v1`, as their protos describe them."""
    files = (generation_pb2.DESCRIPTOR, vector_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR)
    return tuple(service for file in files for service in file.services_by_name.values())
