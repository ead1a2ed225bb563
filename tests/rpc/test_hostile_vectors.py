"""Hostile vector files: each is refused with the exact reason, wherever it comes from, and nothing of it is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from steering.v1 import vector_pb2, vector_pb2_grpc
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import encode_vector
from steering_server.checking import check
from steering_server.config import ServerConfig
from steering_spec import limits
from tests.support.hostile_vectors import TEN_GB, Hostile, hostile_vectors
from tests.support.server import LiveServer
from tests.support.statuses import failure
from tests.support.vector_files import full_vector
from tests.support.vectors import save_random_vector

Stub = vector_pb2_grpc.VectorServiceStub
TOO_LARGE = f"{TEN_GB} bytes; at most {limits.MAX_VECTOR_FILE_BYTES} are allowed"
LINK = "a link that leads out of the vector directory"


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(str(model_folder))


@pytest.fixture(scope="module")
def hostile(loaded: LoadedModel) -> dict[str, Hostile]:
    return hostile_vectors(encode_vector(full_vector(loaded)))


@pytest.fixture(scope="module")
def folder(
    loaded: LoadedModel, hostile: dict[str, Hostile], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A vector directory with every hostile file, and a sound one between them."""
    directory = tmp_path_factory.mktemp("hostile") / "vectors"
    directory.mkdir()
    for name, file in hostile.items():
        (directory / f"{name}.safetensors").write_bytes(file.data)
    save_random_vector(directory, loaded, "good", [0])
    with (directory / "huge.safetensors").open("wb") as sparse:
        sparse.truncate(TEN_GB)
    outside = save_random_vector(directory.parent, loaded, "outside", [0])
    (directory / "link.safetensors").symlink_to(outside)
    (directory / "dangling.safetensors").symlink_to("nowhere")
    os.mkfifo(directory / "pipe.safetensors")
    return directory


@pytest.fixture(scope="module")
def server(model_folder: Path, folder: Path) -> Iterator[LiveServer]:
    """A server that was started with them."""
    with LiveServer(model_folder, vectors=folder) as running:
        yield running


@pytest.fixture
def stub(server: LiveServer) -> Iterator[Stub]:
    """Of that server, which has the same vectors, rows and memory in use afterwards."""
    registry = server.model.vectors
    before = registry.refs(all_versions=True), registry.memory(), registry.table_rows()
    assert [ref.id for ref in before[0]] == ["good"]
    with server.channel() as channel:
        yield Stub(channel)
    assert (registry.refs(all_versions=True), registry.memory(), registry.table_rows()) == before


def test_bytes_are_refused(stub: Stub, hostile: dict[str, Hostile]) -> None:
    for name, file in hostile.items():
        request = vector_pb2.LoadVectorRequest(name=f"vectors/{name}", safetensors=file.data)
        refused_with(stub, request, file.problems)


def test_files_of_the_directory_are_refused(stub: Stub, hostile: dict[str, Hostile]) -> None:
    for name, file in hostile.items():
        request = vector_pb2.LoadVectorRequest(name=f"vectors/{name}", path=f"{name}.safetensors")
        refused_with(stub, request, file.problems)


def test_a_file_of_ten_gigabytes_is_refused_unread(stub: Stub) -> None:
    request = vector_pb2.LoadVectorRequest(name="vectors/huge", path="huge.safetensors")
    refused_with(stub, request, (TOO_LARGE,))


def test_a_replacement_that_is_refused_leaves_what_was_there(
    stub: Stub, hostile: dict[str, Hostile], server: LiveServer
) -> None:
    before = server.model.vectors.infos(all_versions=True)
    for file in hostile.values():
        request = vector_pb2.LoadVectorRequest(name="vectors/good", safetensors=file.data, replace=True)
        refused_with(stub, request, file.problems)
    assert server.model.vectors.infos(all_versions=True) == before


def test_a_start_names_each_and_loads_the_others(
    model_folder: Path, folder: Path, hostile: dict[str, Hostile]
) -> None:
    told = {name: "; ".join(file.problems) for name, file in hostile.items()}
    told |= {
        "dangling": "No such file or directory",
        "huge": TOO_LARGE,
        "link": LINK,
        "pipe": "not a regular file",
    }

    faults, _ = check(ServerConfig(model=str(model_folder), vectors=folder))

    assert faults == [f"vector not loaded: {name}.safetensors: {text}" for name, text in sorted(told.items())]


def test_without_a_model_they_are_named_all_the_same(
    folder: Path, hostile: dict[str, Hostile], tmp_path: Path
) -> None:
    faults, _ = check(ServerConfig(model=str(tmp_path / "none"), vectors=folder))

    assert f"vector not loaded: huge.safetensors: {TOO_LARGE}" in faults
    assert f"vector not loaded: link.safetensors: {LINK}" in faults
    assert len(faults) == 1 + len(hostile) + 4


def refused_with(stub: Stub, request: vector_pb2.LoadVectorRequest, problems: tuple[str, ...]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.LoadVector(request)
    refused = failure(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_VECTOR_FILE")
    assert refused.faults == tuple(("source", problem) for problem in problems)
