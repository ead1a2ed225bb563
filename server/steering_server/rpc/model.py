"""GetModel."""

from __future__ import annotations

import grpc

from steering.v1 import model_pb2, model_pb2_grpc
from steering_spec import InvalidRequestError, ModelInfo, Violation, ViolationKind
from steering_spec.convert.resources import model_to_proto


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Describes the served model."""

    def __init__(self, info: ModelInfo) -> None:
        self._name = info.facts.name
        self._message = model_to_proto(info)

    async def GetModel(  # noqa: N802 -- the name of the RPC
        self,
        request: model_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[object, object],  # noqa: ARG002 -- gRPC's signature
    ) -> model_pb2.GetModelResponse:
        """The served model."""
        if request.name not in {"", self._name}:
            description = f"{request.name[:100]!r} is not served here; the served model is {self._name!r}"
            raise InvalidRequestError([Violation("name", description, ViolationKind.NOT_FOUND)])
        return model_pb2.GetModelResponse(model=self._message)
