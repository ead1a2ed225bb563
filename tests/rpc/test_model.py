"""GetModel, health and reflection through a real channel."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from steering.v1 import model_pb2, model_pb2_grpc
from steering_spec.convert.resources import model_from_proto
from tests.support.server import LiveServer
from tests.support.statuses import failure

SERVICES = [
    "steering.v1.GenerationService",
    "steering.v1.VectorService",
    "steering.v1.ModelService",
]


@pytest.mark.parametrize("name", ["", "models/tiny"])
def test_the_model_is_described(channel: grpc.Channel, live: LiveServer, name: str) -> None:
    response = model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(name=name))
    assert model_from_proto(response.model) == live.model.info


@pytest.mark.parametrize("name", ["tiny", "models/other", "x" * 10_000])
def test_another_model_is_not_found(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(name=name))
    refused = failure(caught.value)
    assert (refused.code, refused.fields) == (grpc.StatusCode.NOT_FOUND, ["name"])
    assert "models/tiny" in refused.message


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_says_serving(channel: grpc.Channel, service: str) -> None:
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services_and_gives_their_files(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="steering.v1.SteeringRule"),
    ]
    listed, file = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}
    descriptor = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert descriptor.package == "steering.v1"
