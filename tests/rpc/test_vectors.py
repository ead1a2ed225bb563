"""ListVectors, GetVector and LoadVector through a real channel; `test_vector_changes` unloads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from steering.v1 import vector_pb2, vector_pb2_grpc
from steering_engine.vectors.file import encode_vector
from steering_server.rpc.vector_files import unreadable
from steering_spec import ViolationKind, limits
from tests.support.server import LiveServer
from tests.support.statuses import Failure, failure
from tests.support.vectors import random_vector, save_random_vector

Stub = vector_pb2_grpc.VectorServiceStub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("directory")


@pytest.fixture(scope="module")
def server(model_folder: Path, folder: Path) -> Iterator[LiveServer]:
    with LiveServer(model_folder, vectors=folder) as running:
        for number in range(7):
            save_random_vector(folder, running.model.loaded, f"v{number}", [number % 3], seed=number)
        running.model.vectors.load_directory(folder)
        yield running


@pytest.fixture
def stub(server: LiveServer) -> Iterator[Stub]:
    with server.channel(("grpc.max_send_message_length", -1)) as channel:
        yield Stub(channel)


def list_failure(stub: Stub, **fields: object) -> Failure:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListVectors(vector_pb2.ListVectorsRequest(**fields))
    return failure(caught.value)


def load_failure(stub: Stub, **fields: object) -> Failure:
    with pytest.raises(grpc.RpcError) as caught:
        stub.LoadVector(vector_pb2.LoadVectorRequest(**{"name": "vectors/new", **fields}))
    return failure(caught.value)


def names(page: vector_pb2.ListVectorsResponse) -> list[str]:
    return [vector.name for vector in page.vectors]


def test_a_listed_vector_says_what_its_file_says(stub: Stub, folder: Path) -> None:
    listed = stub.ListVectors(vector_pb2.ListVectorsRequest()).vectors
    [first] = [vector for vector in listed if vector.name == "vectors/v0"]
    assert first.sha256 == hashlib.sha256((folder / "v0.safetensors").read_bytes()).hexdigest()
    assert [(layer.layer, layer.strength, layer.residual_norm) for layer in first.layers] == [(0, 4.0, 1.0)]
    assert first.hidden_size == 32
    assert first.method == "random"


def test_pages_hold_every_vector_once_and_in_order(stub: Stub) -> None:
    everything = names(stub.ListVectors(vector_pb2.ListVectorsRequest()))
    assert everything == sorted(everything)
    paged: list[str] = []
    token = ""
    while True:
        page = stub.ListVectors(vector_pb2.ListVectorsRequest(page_size=3, page_token=token))
        assert len(page.vectors) <= 3
        paged += names(page)
        token = page.next_page_token
        if not token:
            break
    assert paged == everything


def test_pages_of_all_versions_hold_each_once_the_current_one_of_a_name_first(
    stub: Stub, folder: Path
) -> None:
    old = stub.GetVector(vector_pb2.GetVectorRequest(name="vectors/v3")).vector
    data = (folder / "v4.safetensors").read_bytes()
    stub.LoadVector(vector_pb2.LoadVectorRequest(name="vectors/v3", safetensors=data, replace=True))
    everything = names(stub.ListVectors(vector_pb2.ListVectorsRequest(all_versions=True)))
    at = everything.index("vectors/v3")
    pinned = f"vectors/v3@{old.sha256}"
    assert everything[at + 1] == pinned
    assert [name for name in everything if name != pinned] == names(
        stub.ListVectors(vector_pb2.ListVectorsRequest())
    )
    paged: list[str] = []
    token = ""
    while not paged or token:
        request = vector_pb2.ListVectorsRequest(page_size=1, page_token=token, all_versions=True)
        page = stub.ListVectors(request)
        paged += names(page)
        token = page.next_page_token
    assert paged == everything
    again = stub.GetVector(vector_pb2.GetVectorRequest(name=pinned)).vector
    assert (again.sha256, again.name) == (old.sha256, pinned)
    stub.UnloadVector(vector_pb2.UnloadVectorRequest(name="vectors/v3"))
    path = "v3.safetensors"
    stub.LoadVector(vector_pb2.LoadVectorRequest(name="vectors/v3", path=path))
    assert stub.GetVector(vector_pb2.GetVectorRequest(name="vectors/v3")).vector == old


@pytest.mark.parametrize("method", ["GetVector", "UnloadVector"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("vectors/absent", grpc.StatusCode.NOT_FOUND),
        (f"vectors/v1@{'0' * 64}", grpc.StatusCode.NOT_FOUND),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("vectors/v1@0", grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 10_000, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_vector_that_is_not_there_and_a_name_that_is_none(
    stub: Stub, method: str, name: str, code: grpc.StatusCode
) -> None:
    request = getattr(vector_pb2, f"{method}Request")(name=name)
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request)
    refused = failure(caught.value)
    assert (refused.code, refused.fields) == (code, ["name"])


def test_a_full_last_page_has_no_next_one(stub: Stub) -> None:
    count = len(stub.ListVectors(vector_pb2.ListVectorsRequest()).vectors)
    assert not stub.ListVectors(vector_pb2.ListVectorsRequest(page_size=count)).next_page_token
    assert stub.ListVectors(vector_pb2.ListVectorsRequest(page_size=count - 1)).next_page_token


def test_a_page_size_above_the_limit_is_taken_as_the_limit(stub: Stub) -> None:
    assert stub.ListVectors(vector_pb2.ListVectorsRequest(page_size=1_000_000)).vectors


def test_a_negative_page_size_is_refused(stub: Stub) -> None:
    refused = list_failure(stub, page_size=-1)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_size"])


def test_a_page_ends_where_it_would_become_too_long(stub: Stub, server: LiveServer) -> None:
    def file(number: int) -> bytes:
        return encode_vector(
            random_vector(server.model.loaded, "long", [0], seed=number, licence=chr(1) * 40_000)
        )

    long = [f"vectors/long-{number:02}" for number in range(20)]
    for number, name in enumerate(long):  # nearly 240 KiB of each are told
        stub.LoadVector(vector_pb2.LoadVectorRequest(name=name, safetensors=file(number)))
    pages: list[vector_pb2.ListVectorsResponse] = []
    token = ""
    while not pages or token:
        pages.append(stub.ListVectors(vector_pb2.ListVectorsRequest(page_size=1000, page_token=token)))
        token = pages[-1].next_page_token
    for name in long:
        stub.UnloadVector(vector_pb2.UnloadVectorRequest(name=name))
    assert len(pages) == 2
    assert all(page.ByteSize() < 4 << 20 for page in pages)
    told = [name for page in pages for name in names(page)]
    assert told == sorted(told)
    assert set(long) < set(told)


def test_all_faults_of_a_list_are_told_at_once(stub: Stub) -> None:
    assert list_failure(stub, page_size=-1, page_token="%%").fields == ["page_size", "page_token"]


@pytest.mark.parametrize("token", ["v1", "!!", "dg==", "ÿ", "dmVjdG9ycy92M", "Ly4uLw=="])
def test_a_token_that_was_not_given_out_is_refused(stub: Stub, token: str) -> None:
    refused = list_failure(stub, page_token=token)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


def test_a_file_of_the_directory_is_loaded_by_path(stub: Stub, server: LiveServer, folder: Path) -> None:
    (folder / "sub").mkdir()
    save_random_vector(folder / "sub", server.model.loaded, "deep", [1], seed=11)
    vector = stub.LoadVector(
        vector_pb2.LoadVectorRequest(name="vectors/deep", path="sub/deep.safetensors")
    ).vector
    assert vector.name == "vectors/deep"
    assert "vectors/deep" in names(stub.ListVectors(vector_pb2.ListVectorsRequest()))


def test_a_file_is_loaded_from_bytes_and_checked_against_its_digest(stub: Stub, folder: Path) -> None:
    data = (folder / "v1.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    request = vector_pb2.LoadVectorRequest(name="vectors/sent", safetensors=data, sha256=digest)
    assert stub.LoadVector(request).vector.sha256 == digest
    assert stub.LoadVector(request).vector.sha256 == digest  # the same again changes nothing


def test_another_digest_is_refused(stub: Stub, folder: Path) -> None:
    data = (folder / "v1.safetensors").read_bytes()
    refused = load_failure(stub, safetensors=data, sha256="0" * 64)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_VECTOR_FILE")
    assert refused.fields == ["sha256"]
    assert hashlib.sha256(data).hexdigest() in refused.message


@pytest.mark.parametrize("digest", ["0" * 63, "A" * 64, "0" * 64 + "\n", "v1"])
def test_what_is_no_digest_is_refused_before_the_file_is_read(stub: Stub, digest: str) -> None:
    refused = load_failure(stub, safetensors=b"none", sha256=digest)
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ["sha256"])


def test_a_taken_name_is_refused(stub: Stub, folder: Path) -> None:
    refused = load_failure(stub, name="vectors/v0", safetensors=(folder / "v1.safetensors").read_bytes())
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "VECTOR_EXISTS")


def test_bytes_that_are_no_safetensors_are_refused(stub: Stub) -> None:
    refused = load_failure(stub, safetensors=b"none")
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_VECTOR_FILE")
    assert refused.fields == ["source"]


def test_a_vector_for_another_model_is_refused(stub: Stub, vector_folder: Path) -> None:
    refused = load_failure(stub, safetensors=(vector_folder / "foreign.safetensors").read_bytes())
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "VECTOR_FOR_ANOTHER_MODEL",
    )
    assert len(refused.faults) >= 2


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/etc/passwd",
        "",
        "a\0b",
        "link.safetensors",
        "loop",
        "linked/outside.safetensors",
        "x" * 5000,
    ],
)
def test_paths_that_leave_the_directory_are_refused(stub: Stub, folder: Path, path: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    for target in (outside / "outside.safetensors", folder.parent / "outside.safetensors"):
        target.write_bytes((folder / "v1.safetensors").read_bytes())
    for link, to in {
        "link.safetensors": outside / "outside.safetensors",
        "linked": outside,
        "loop": "loop",
    }.items():
        if not (folder / link).is_symlink():
            (folder / link).symlink_to(to)
    refused = load_failure(stub, path=path)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["path"])
    assert str(folder.parent) not in refused.message


@pytest.mark.parametrize("path", ["missing.safetensors", ".", "v1.safetensors/x"])
def test_a_path_without_a_file_is_not_found(stub: Stub, path: str) -> None:
    refused = load_failure(stub, path=path)
    assert (refused.code, refused.fields) == (grpc.StatusCode.NOT_FOUND, ["path"])


def test_a_file_that_can_not_be_read_is_refused_with_the_reason(model_folder: Path) -> None:
    directory = Path(
        "/proc/self"
    ).resolve()  # whose `mem` is a file that opens, and whose first byte is not there
    with LiveServer(model_folder, vectors=directory) as server, server.channel() as channel:
        refused = load_failure(Stub(channel), path="mem")
        assert not names(Stub(channel).ListVectors(vector_pb2.ListVectorsRequest()))
    assert (refused.code, refused.fields) == (grpc.StatusCode.FAILED_PRECONDITION, ["path"])
    assert refused.message.endswith("this file can't be read: Input/output error")


def test_a_file_that_is_deleted_meanwhile_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "gone.safetensors").open()
    refused = unreadable(caught.value)
    assert (refused.kind, [fault.field for fault in refused.violations]) == (
        ViolationKind.NOT_FOUND,
        ["path"],
    )
    assert str(tmp_path) not in str(refused)


def test_a_faulty_file_does_not_tell_where_the_directory_is(stub: Stub, folder: Path) -> None:
    (folder / "bad.safetensors").write_bytes(b"bad")
    refused = load_failure(stub, path="bad.safetensors")
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(folder.parent) not in refused.message + str(refused.faults)


def test_a_file_above_the_limit_is_refused(stub: Stub) -> None:
    refused = load_failure(stub, safetensors=bytes(limits.MAX_VECTOR_FILE_BYTES + 1))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["safetensors"])


def test_a_message_above_the_limit_is_refused_by_grpc(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.LoadVector(
            vector_pb2.LoadVectorRequest(name="vectors/huge", safetensors=bytes(limits.MAX_MESSAGE_BYTES + 1))
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", ["", "vectors/Upper", "vectors/x@" + "0" * 64, "v" * 70])
def test_a_malformed_name_is_refused(stub: Stub, name: str, folder: Path) -> None:
    refused = load_failure(stub, name=name, safetensors=(folder / "v1.safetensors").read_bytes())
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


def test_all_faults_of_a_load_are_told_at_once(stub: Stub) -> None:
    assert load_failure(stub, name="Upper").fields == ["name", "source"]
    assert load_failure(stub, name="Upper", sha256="x").fields == ["name", "source", "sha256"]
    assert load_failure(stub, name="Upper", path="..").fields == ["name", "path"]


def test_without_a_directory_paths_do_not_apply(model_folder: Path) -> None:
    with LiveServer(model_folder) as server, server.channel() as channel:
        refused = load_failure(Stub(channel), path="v1.safetensors")
    assert (refused.code, refused.fields) == (grpc.StatusCode.FAILED_PRECONDITION, ["path"])


@pytest.mark.usefixtures("server")  # which has made the files
def test_a_vector_without_room_is_refused_and_those_before_stay(model_folder: Path, folder: Path) -> None:
    one_row = 4 * 3 * 32  # float32, blocks, width
    with LiveServer(model_folder, vector_table_bytes=2 * one_row) as server, server.channel() as channel:
        stub = Stub(channel)
        data = [(folder / f"v{number}.safetensors").read_bytes() for number in (0, 3)]  # both at block 0
        stub.LoadVector(vector_pb2.LoadVectorRequest(name="vectors/first", safetensors=data[0]))
        refused = load_failure(stub, safetensors=data[1])
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "VECTOR_TABLE_FULL")
        assert "the vector needs 1 of block 0's rows, and 0 of 1 are free" in refused.message
        assert names(stub.ListVectors(vector_pb2.ListVectorsRequest())) == ["vectors/first"]
