"""GetModel, Tokenize, Detokenize and GetServerStats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from steering.v1 import model_pb2, model_pb2_grpc
from steering_engine.model import SteeredModel
from steering_engine.prompts import TURN_CHARACTERS
from steering_server.rpc.lanes import Lanes
from steering_spec import InvalidRequestError, ServerStats
from steering_spec.admission import model_violations
from steering_spec.convert.resources import model_to_proto
from steering_spec.convert.stats import stats_to_proto
from steering_spec.convert.tokenizing import detokenize_from_proto, tokenize_from_proto
from steering_spec.tokenizing_admission import detokenize_violations, tokenize_violations

_SHORT_BYTES = 20_000  # done in about 10 ms
MOST_LONG = 16
"""Long texts of one connection that are tokenized or wait for it."""

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Describes the served model and the server, and lends the model's tokenizer."""

    def __init__(self, model: SteeredModel, stats: Callable[[], ServerStats]) -> None:
        """Takes the model, and what tells how the server is."""
        self._model = model
        self._stats = stats
        self._message = model_to_proto(model.info)
        # One thread of its own: however many long texts come, they hold up only each other. Connections take turns.
        self._lanes = Lanes(1, MOST_LONG, "long texts")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")

    async def GetModel(  # noqa: N802 -- the name of the RPC
        self,
        request: model_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> model_pb2.GetModelResponse:
        """The served model."""
        if faults := list(model_violations("name", request.name, self._model.info.facts)):
            raise InvalidRequestError(faults)
        return model_pb2.GetModelResponse(model=self._message)

    async def Tokenize(  # noqa: N802 -- the name of the RPC
        self,
        request: model_pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> model_pb2.TokenizeResponse:
        """The ids of a prompt."""
        around = TURN_CHARACTERS * len(request.chat.messages)
        return await self._beside(self._tokenize, request, request.ByteSize() + around, context)

    async def Detokenize(  # noqa: N802 -- the name of the RPC
        self,
        request: model_pb2.DetokenizeRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> model_pb2.DetokenizeResponse:
        """The text of ids."""
        return await self._beside(self._detokenize, request, request.ByteSize(), context)

    async def GetServerStats(  # noqa: N802 -- the name of the RPC
        self,
        request: model_pb2.GetServerStatsRequest,  # noqa: ARG002 -- it asks for everything
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> model_pb2.GetServerStatsResponse:
        """The server now."""
        return model_pb2.GetServerStatsResponse(stats=stats_to_proto(self._stats()))

    def _tokenize(self, request: model_pb2.TokenizeRequest) -> model_pb2.TokenizeResponse:
        spec = tokenize_from_proto(request)
        if faults := tokenize_violations(spec, self._model.info.facts):
            raise InvalidRequestError(faults)
        return model_pb2.TokenizeResponse(ids=self._model.tokenize(spec.prompt))

    def _detokenize(self, request: model_pb2.DetokenizeRequest) -> model_pb2.DetokenizeResponse:
        spec = detokenize_from_proto(request)
        if faults := detokenize_violations(spec, self._model.info.facts):
            raise InvalidRequestError(faults)
        text = self._model.detokenize(spec.ids, skip_special_tokens=spec.skip_special_tokens)
        return model_pb2.DetokenizeResponse(text=text)

    async def _beside(
        self,
        work: Callable[[_Request], _Response],
        request: _Request,
        size: int,
        context: grpc.aio.ServicerContext[object, object],
    ) -> _Response:
        """Does the work where it holds no stream up: in the thread, unless it is short."""
        if size <= _SHORT_BYTES:
            return work(request)
        async with self._lanes.place(context.peer()):
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, request)
