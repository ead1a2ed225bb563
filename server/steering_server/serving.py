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
from steering_server.metrics import Metrics, MetricsServer
from steering_server.notify import READY, STOPPING, WELL, Systemd
from steering_server.readings import Readings
from steering_server.rpc.access import Access
from steering_server.rpc.backlog import Backlog
from steering_server.rpc.default_steering import check_default_steering, read_default_steering
from steering_server.rpc.guard import Guard
from steering_server.rpc.services import add_services
from steering_server.rpc.turns import Turns
from steering_server.security.credentials import Credentials
from steering_server.tracing import tracing_of
from steering_spec import GenerationSpec, PromptIds, SamplingParams, limits

_log = logging.getLogger(__name__)

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Else a second server silently shares the port, and half the calls reach the wrong one.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MAX_RECEIVED_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    # Else gRPC takes megabytes of every request on a fast line before anyone reads it.
    ("grpc.http2.bdp_probe", 0),
    # A peer that vanished without a word is noticed after 80 s, and its requests end.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping every 10 s; gRPC's own 5 minutes would cut off those that do.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

# Open calls of a connection beside those that generate: other methods, and those that are being refused.
_SPARE_STREAMS = 256
_MOST_STREAMS = 2**31 - 1  # that HTTP/2 has of a connection (RFC 9113, 5.1.1)

# Calls that are still open after the engine has closed get this long to tell their clients so.
_FAREWELL_SECONDS = 1.0

# A changed certificate, a changed token file or a dead engine is noticed within this time.
_LOOK_SECONDS = 1.0


class SteeringServer:
    """Serves one loaded model on one port; must be made on a running event loop, which it then belongs to."""

    def __init__(
        self, model: SteeredModel, config: ServerConfig, credentials: Credentials | None = None
    ) -> None:
        """Puts a server together.

        Args:
            model: The model.
            config: The configuration.
            credentials: What was read of it before the model was loaded; None reads it now.

        Raises:
            StartError: The credentials or the default steering are wrong, or tracing lacks its packages.
        """
        self._model = model
        self._config = config
        self._credentials = credentials or Credentials(config)
        self._metrics = Metrics()
        self._metrics_server: MetricsServer | None = None
        access = Access(self._credentials.tokens if self._credentials.needs_tokens else None)
        self._tracing = tracing_of(config)
        self._systemd = Systemd()
        self._guard = Guard(access, self._metrics, self._tracing)
        self._hurry = asyncio.Event()
        self._healthy = False
        self._looking: asyncio.Task[None] | None = None
        self._health = health.aio.HealthServicer()
        # Calls beyond these wait in the client; else one connection could hold any number of open ones.
        most = min(config.connection_limit + _SPARE_STREAMS, _MOST_STREAMS)
        streams = ("grpc.max_concurrent_streams", most)
        self._server = grpc.aio.server(interceptors=[self._guard], options=(*CHANNEL_OPTIONS, streams))
        default_steering = None
        if (path := config.default_steering) is not None:
            default_steering = read_default_steering(path)
            check_default_steering(path, default_steering, model)
        backlog = Backlog(config.max_queued, config.connection_limit)
        turns = Turns(model.limits.batch_requests, model.stats)
        expiry = self._credentials.certificate_expiry
        readings = Readings(
            model,
            backlog,
            turns,
            lambda: self._healthy,
            (lambda: expiry().timestamp()) if self._credentials.has_tls else None,
        )
        self._metrics.read(readings)
        services = add_services(
            self._server, model, config, backlog, turns, self._metrics, default_steering, readings.stats
        )
        self._health_names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are; None before the start, and where they were not asked for."""
        return None if self._metrics_server is None else self._metrics_server.url

    async def start(self) -> str:
        """Warms the model up, listens, and says that it is healthy; in this order.

        Returns:
            The address that it listens on, with the port that was given.

        Raises:
            StartError: The port is taken, or the host has no such address.
        """
        await self._set_health(healthy=False)
        await self._warm_up()
        for warning in self._credentials.warnings():
            _log.warning("%s", warning)
        address, credentials = self._config.address, self._credentials.grpc()
        try:
            port = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError:  # gRPC's text names no reason
            port = 0
        if not port:
            raise StartError(f"can't listen on {address}")
        if self._config.metrics_port is not None:
            self._metrics_server = self._metrics.serve(self._config.metrics_host, self._config.metrics_port)
            _log.info("metrics are at %s", self._metrics_server.url)
        await self._server.start()
        await self._set_health(healthy=True)
        self._looking = asyncio.create_task(self._look())
        self._systemd.tell(READY)
        return join_address(self._config.host, port)

    async def stop(self) -> None:
        """Stops taking work, lets running calls finish within the grace, and closes the engine.

        Until the last call has ended, the health service answers NOT_SERVING and new calls get UNAVAILABLE.
        Calls that outlast the grace end with UNAVAILABLE too.
        """
        self._healthy = False
        self._systemd.tell(STOPPING)
        await self._health.enter_graceful_shutdown()
        self._guard.refuse_new_calls()
        waits = {asyncio.create_task(self._guard.wait_until_idle()), asyncio.create_task(self._hurry.wait())}
        grace = self._config.grace
        _, unmet = await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if len(unmet) == len(waits):
            _log.warning("calls were still running after %g s of grace and are ended", grace)
        for wait in unmet:
            wait.cancel()
        await self._model.close()
        await self._server.stop(_FAREWELL_SECONDS)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def hurry(self) -> None:
        """Ends the grace of a running `stop` at once."""
        self._hurry.set()

    async def _set_health(self, *, healthy: bool) -> None:
        self._healthy = healthy
        statuses = health_pb2.HealthCheckResponse
        for service in self._health_names:
            await self._health.set(service, statuses.SERVING if healthy else statuses.NOT_SERVING)

    async def _look(self) -> None:
        """Notices what changes under a running server: its certificates, its tokens, and the end of its engine."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await asyncio.to_thread(self._credentials.look)
            except Exception:  # noqa: BLE001 -- whatever it is, the server serves on, and looks again
                _log.exception("certificates and tokens could not be looked at")
            failure = self._model.failure()
            if failure is not None and self._healthy:
                _log.critical("the engine is lost, nothing more will be generated: %s", failure)
                await self._set_health(healthy=False)
            if self._healthy:
                self._systemd.tell(WELL)

    async def _warm_up(self) -> None:
        # The first forward pass sets up threads, caches and kernels; no caller should wait for that.
        spec = GenerationSpec(PromptIds((0,)), SamplingParams(temperature=0.0, max_tokens=2))
        await self._model.generate(spec)
