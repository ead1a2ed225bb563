"""ListVectors, GetVector, LoadVector and UnloadVector."""

from __future__ import annotations

import asyncio
import base64
from bisect import bisect_right
from pathlib import Path

import grpc

from steering.v1 import vector_pb2, vector_pb2_grpc
from steering_engine.model import SteeredModel
from steering_engine.vectors.registered import RegisteredVector
from steering_engine.vectors.registry import not_loaded, ref_of, ref_order
from steering_server.rpc.default_steering import check_becoming_current, check_unloading
from steering_server.rpc.vector_files import find_vector_file, unreadable
from steering_spec import InvalidRequestError, SteeringSpec, VectorInfo, VectorRef, Violation, limits
from steering_spec.convert.resources import vector_to_proto
from steering_spec.naming import SHA256_RULE, is_sha256

MAX_PAGE_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Of a page of more than one vector; gRPC takes messages up to 4 MiB where nobody says otherwise."""


class VectorServicer(vector_pb2_grpc.VectorServiceServicer):
    """Serves the registry; loads files by path from one directory only."""

    def __init__(
        self, model: SteeredModel, directory: Path | None, default_steering: SteeringSpec | None = None
    ) -> None:
        """Takes what is served.

        Args:
            model: The model whose vectors these are.
            directory: The vector directory, if there is one.
            default_steering: Names vectors that must stay loaded, and fit.
        """
        self._model = model
        self._registry = model.vectors
        self._directory = directory
        self._default_steering = default_steering or SteeringSpec(())
        self._changing = asyncio.Lock()

    async def ListVectors(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.ListVectorsRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.ListVectorsResponse:
        """One page of the vectors, ordered by name."""
        # In a thread: describing a page of 1,000 takes tens of milliseconds.
        return await asyncio.to_thread(self._page, request)

    def _page(self, request: vector_pb2.ListVectorsRequest) -> vector_pb2.ListVectorsResponse:
        last = _page_start(request)
        size = min(request.page_size or limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)
        refs = self._registry.refs(all_versions=request.all_versions)
        # The token is the last name of the page before, so a vector loaded meanwhile shifts no page.
        start = 0 if last is None else bisect_right(refs, ref_order(last), key=ref_order)
        response = vector_pb2.ListVectorsResponse()
        room = MAX_PAGE_BYTES
        end = start
        for ref in refs[start : start + size]:
            info = self._registry.info(ref)
            if info is not None:  # None was unloaded meanwhile
                vector = vector_to_proto(info)
                room -= vector.ByteSize()
                if room < 0 and response.vectors:
                    break
                response.vectors.append(vector)
            end += 1
        if end < len(refs):
            response.next_page_token = page_token(refs[end - 1].name)
        return response

    async def GetVector(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.GetVectorRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.GetVectorResponse:
        """One vector."""
        ref = ref_of(request.name)
        info = self._registry.info(ref)
        if info is None:
            raise InvalidRequestError([not_loaded("name", ref)])
        return vector_pb2.GetVectorResponse(vector=vector_to_proto(info))

    async def LoadVector(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.LoadVectorRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.LoadVectorResponse:
        """Loads one vector from a file of the directory or from the request's own bytes."""
        source = self._source(request)
        async with self._changing:
            # In a thread: reading and checking up to 32 MiB must not hold the streams up.
            info = await asyncio.to_thread(self._load, request, source)
        return vector_pb2.LoadVectorResponse(vector=vector_to_proto(info))

    async def UnloadVector(  # noqa: N802 -- the name of the RPC
        self,
        request: vector_pb2.UnloadVectorRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> vector_pb2.UnloadVectorResponse:
        """Unloads one version of a vector, and waits for the requests that use it."""
        ref = ref_of(request.name)
        async with self._changing:
            check_unloading(ref, self._default_steering, self._registry)
            unloading = await asyncio.to_thread(self._registry.unload, request.name)
        # Who stops waiting leaves the vector unloaded; its memory is freed when its last request ends.
        await asyncio.wrap_future(unloading.freed)
        return vector_pb2.UnloadVectorResponse(vector=vector_to_proto(unloading.info))

    def _load(self, request: vector_pb2.LoadVectorRequest, source: Path | bytes) -> VectorInfo:
        try:
            return self._registry.load(
                request.name,
                source,
                request.sha256 or None,
                replace=request.replace,
                approve=self._approve,
            )
        except OSError as error:
            raise unreadable(error) from error

    def _approve(self, vector: RegisteredVector) -> None:
        # What could not be told must not be loaded: every list of vectors would fail with it.
        vector_to_proto(vector.describe(current=True, running_requests=0))
        check_becoming_current(VectorRef(vector.id), vector.facts, self._default_steering, self._model)

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
        if request.sha256 and not is_sha256(request.sha256):
            faults.append(Violation("sha256", f"expected {SHA256_RULE}, or nothing"))
        if faults:
            raise InvalidRequestError(faults)
        return source


def _page_start(request: vector_pb2.ListVectorsRequest) -> VectorRef | None:
    faults = []
    if request.page_size < 0:
        faults.append(Violation("page_size", f"{request.page_size} is below 0"))
    try:
        last = read_page_token(request.page_token)
    except InvalidRequestError as error:
        faults += error.violations
    if faults:
        raise InvalidRequestError(faults)
    return last


def page_token(last_name: str) -> str:
    """The token of the page after the one that ends with `last_name`."""
    return base64.urlsafe_b64encode(last_name.encode()).decode()


def read_page_token(token: str) -> VectorRef | None:
    """What a page token stands for, the last of the page before; None for the empty token, before all.

    Raises:
        InvalidRequestError: The token is none of ours.
    """
    if not token:
        return None
    try:
        name = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        ref = VectorRef.parse(name)
    except ValueError:  # no base64, no Unicode, no name
        ref = None
    if ref is None or ref.name != name:
        raise InvalidRequestError([Violation("page_token", "not a token that this server gave out")])
    return ref
