"""A gRPC server around one loaded model: what it consists of, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from steering_engine.model import SteeredModel
from steering_server.address import join_address
from steering_server.config import ServerConfig
from steering_server.errors import StartError
from steering_server.rpc.guard import Guard
from steering_server.rpc.services import add_services
from steering_spec import GenerationSpec, PromptIds, SamplingParams, limits

_log = logging.getLogger(__name__)

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Else a second server silently shares the port, and half the calls reach the wrong one.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    # A peer that vanished without a word is noticed after 80 s, and its requests end.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping every 10 s; gRPC's own 5 minutes would cut off those that do.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

# Calls that are still open after the engine has closed get this long to tell their clients so.
_FAREWELL_SECONDS = 1.0


class SteeringServer:
    """Serves one loaded model on one port; must be made on a running event loop, which it then belongs to."""

    def __init__(self, model: SteeredModel, config: ServerConfig) -> None:
        self._model = model
        self._config = config
        self._guard = Guard()
        self._hurry = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(interceptors=[self._guard], options=CHANNEL_OPTIONS)
        services = add_services(self._server, model, config)
        self._health_names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> str:
        """Warms the model up, listens, and says that it is healthy; in this order.

        Returns:
            The address that it listens on, with the port that was given.

        Raises:
            StartError: The port is taken, or the host has no such address.
        """
        for service in self._health_names:
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._warm_up()
        try:
            port = self._server.add_insecure_port(self._config.address)
        except RuntimeError:  # gRPC's text names no reason
            port = 0
        if not port:
            raise StartError(f"can't listen on {self._config.address}")
        await self._server.start()
        for service in self._health_names:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return join_address(self._config.host, port)

    async def stop(self) -> None:
        """Stops taking work, lets running calls finish within the grace, and closes the engine.

        Until the last call has ended, the health service answers NOT_SERVING and new calls get UNAVAILABLE.
        Calls that outlast the grace end with UNAVAILABLE too.
        """
        await self._health.enter_graceful_shutdown()
        self._guard.refuse_new_calls()
        waits = {asyncio.create_task(self._guard.wait_until_idle()), asyncio.create_task(self._hurry.wait())}
        grace = self._config.grace_seconds
        _, unmet = await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if len(unmet) == len(waits):
            _log.warning("calls were still running after %g s of grace and are ended", grace)
        for wait in unmet:
            wait.cancel()
        await self._model.close()
        await self._server.stop(_FAREWELL_SECONDS)

    def hurry(self) -> None:
        """Ends the grace of a running `stop` at once."""
        self._hurry.set()

    async def _warm_up(self) -> None:
        # The first forward pass sets up threads, caches and kernels; no caller should wait for that.
        spec = GenerationSpec(PromptIds((0,)), SamplingParams(temperature=0.0, max_tokens=2))
        await self._model.generate(spec)
