"""ListVectors and LoadVector."""

from __future__ import annotations

import asyncio
import base64
from bisect import bisect_right
from pathlib import Path

import grpc

from steering.v1 import vector_pb2, vector_pb2_grpc
from steering_engine.vectors.registry import VectorRegistry
from steering_server.rpc.vector_files import find_vector_file
from steering_spec import InvalidRequestError, VectorRef, Violation, limits
from steering_spec.convert.resources import vector_to_proto


class VectorServicer(vector_pb2_grpc.VectorServiceServicer):
    """Serves the registry; loads files by path from one directory only."""

    def __init__(self, registry: VectorRegistry, directory: Path | None) -> None:
        self._registry = registry
        self._directory = directory
        self._loading = asyncio.Lock()

    async def ListVectors(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.ListVectorsRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.ListVectorsResponse:
        """One page of the vectors, ordered by name."""
        if request.page_size < 0:
            raise InvalidRequestError([Violation("page_size", f"{request.page_size} is below 0")])
        size = min(request.page_size or limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)
        infos = self._registry.infos()
        # The token is the last name of the page before, so a vector loaded meanwhile shifts no page.
        start = bisect_right(infos, read_page_token(request.page_token), key=lambda info: info.name)
        page = infos[start : start + size]
        more = start + size < len(infos)
        return vector_pb2.ListVectorsResponse(
            vectors=map(vector_to_proto, page), next_page_token=page_token(page[-1].name) if more else ""
        )

    async def LoadVector(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.LoadVectorRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.LoadVectorResponse:
        """Loads one vector from a file of the directory or from the request's own bytes."""
        source = self._source(request)
        async with self._loading:
            # In a thread: reading and checking up to 32 MiB must not hold the streams up.
            info = await asyncio.to_thread(self._registry.load, request.name, source, request.sha256 or None)
        return vector_pb2.LoadVectorResponse(vector=vector_to_proto(info))

    def _source(self, request: vector_pb2.LoadVectorRequest) -> Path | bytes:
        faults: list[Violation] = []
        source: Path | bytes = b""
        try:
            if VectorRef.parse(request.name).sha256 is not None:
                faults.append(
                    Violation("name", "a vector is loaded under its plain name; the digest goes to `sha256`")
                )
        except ValueError as error:
            faults.append(Violation("name", str(error)))
        match request.WhichOneof("source"):
            case "path":
                try:
                    source = find_vector_file(self._directory, request.path)
                except InvalidRequestError as error:
                    faults += error.violations
            case "safetensors":
                source = request.safetensors
                if len(source) > limits.MAX_VECTOR_FILE_BYTES:
                    limit = limits.MAX_VECTOR_FILE_BYTES
                    faults.append(Violation("safetensors", f"{len(source)} bytes; at most {limit} are taken"))
            case _:
                faults.append(Violation("source", "no source; set one of path, safetensors"))
        if faults:
            raise InvalidRequestError(faults)
        return source


def page_token(last_name: str) -> str:
    """The token of the page after the one that ends with `last_name`."""
    return base64.urlsafe_b64encode(last_name.encode()).decode()


def read_page_token(token: str) -> str:
    """The name that a page token stands for; the empty token gives the empty name, before all others.

    Raises:
        InvalidRequestError: The token is none of ours.
    """
    try:
        name = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        is_ours = not name or VectorRef.parse(name).name == name
    except ValueError:  # no base64, no Unicode, no name
        is_ours = False
    if not is_ours:
        raise InvalidRequestError([Violation("page_token", "not a token that this server gave out")])
    return name
