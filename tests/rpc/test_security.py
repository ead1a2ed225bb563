"""Who gets in: TLS, mTLS, tokens and their scopes, through real channels."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from steering.v1 import generation_pb2
from steering_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    NotFoundError,
    PermissionDeniedError,
    SamplingParams,
    Tls,
    UnauthenticatedError,
)
from steering_server.rpc.access import SCOPES
from steering_server.rpc.services import api_services
from steering_server.security.certificates import Certificates, ServerCredentials
from tests.support.certificates import DAY, Authority, Pair, write_secret
from tests.support.server import LiveServer, wait_until
from tests.support.statuses import code_of, failure

GENERATE = "generate-token-0123456789"
ADMIN = "admin-token-0123456789/+="
UNKNOWN = "unknown-token-0123456789"
TOKENS = f"alice generate {GENERATE}\nops admin {ADMIN}\n"
ONE = SamplingParams(max_tokens=1, temperature=0)
AUTHORITY = Authority()


@dataclass(frozen=True)
class Guarded:
    """A server with TLS and tokens, and its files."""

    server: LiveServer
    folder: Path

    def client(self, token: str | None, *, ca: bytes = AUTHORITY.ca, name: str = "") -> Client:
        return Client(self.server.address, tls=Tls(ca=ca, server_name=name), token=token)

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(self.server.address, grpc.ssl_channel_credentials(AUTHORITY.ca))


@pytest.fixture(scope="module")
def guarded(
    model_folder: Path, vector_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("secrets")
    cert, key = AUTHORITY.sign().write(folder)
    tokens = write_secret(folder / "tokens", TOKENS)
    settings = {
        "tls_cert": cert,
        "tls_key": key,
        "token_file": tokens,
        "vectors": vector_folder,
        "metrics_port": 0,
    }
    with LiveServer(model_folder, **settings) as server:
        yield Guarded(server, folder)


def test_a_known_server_and_a_token_with_the_scope_get_a_completion(guarded: Guarded) -> None:
    with guarded.client(GENERATE) as client:
        assert client.generate("hi", sampling=ONE).tokens
        with client.stream("hi", sampling=ONE) as stream:
            assert list(stream)
        assert [vector.name for vector in client.list_vectors()] == ["vectors/calm", "vectors/pivot"]


async def test_the_asyncio_client_has_the_same_names(guarded: Guarded) -> None:
    tls = Tls(ca=AUTHORITY.ca)
    async with AsyncClient(guarded.server.address, tls=tls, token=GENERATE) as client:
        assert (await client.generate("hi", sampling=ONE)).tokens
        async with client.stream("hi", sampling=ONE) as stream:
            assert [delta async for delta in stream]
    async with AsyncClient(guarded.server.address, tls=tls, token=UNKNOWN) as client:
        with pytest.raises(UnauthenticatedError):
            await client.model()


@pytest.mark.parametrize("method", ["ModelService/GetModel", "GenerationService/StreamGenerate"])
def test_who_has_no_token_is_refused_before_the_request_is_read(guarded: Guarded, method: str) -> None:
    never = threading.Event()

    def requests() -> Iterator[bytes]:
        never.wait()
        yield b""

    with guarded.channel() as channel:
        call = channel.stream_stream(f"/steering.v1.{method}")
        try:
            with pytest.raises(grpc.RpcError) as caught:
                list(call(requests(), timeout=60))
        finally:
            never.set()
    assert failure(caught.value).reason == "NO_TOKEN"


@pytest.mark.parametrize(("token", "reason"), [(None, "NO_TOKEN"), (UNKNOWN, "UNKNOWN_TOKEN")])
def test_without_a_known_token_nothing_is_answered(guarded: Guarded, token: str | None, reason: str) -> None:
    with guarded.client(token) as client:
        calls: list[Callable[[], object]] = [
            client.model,
            client.list_vectors,
            client.server_stats,
            lambda: client.tokenize("hi"),
            lambda: client.unload_vector("calm"),
            lambda: client.generate("hi", sampling=ONE),
            lambda: list(client.stream("hi", sampling=ONE)),
            lambda: client.load_vector("x", path_on_server="x.safetensors"),
        ]
        for call in calls:
            with pytest.raises(UnauthenticatedError) as caught:
                call()
            assert caught.value.reason == reason
            assert caught.value.request_id
            assert UNKNOWN not in str(caught.value)


def test_scopes_are_kept_apart(guarded: Guarded) -> None:
    with (
        guarded.client(GENERATE) as client,
        pytest.raises(PermissionDeniedError, match="scope admin") as caught,
    ):
        client.load_vector("x", path_on_server="none.safetensors")
    assert caught.value.reason == "MISSING_SCOPE"
    with guarded.client(GENERATE) as client:
        with pytest.raises(PermissionDeniedError, match="scope admin"):
            client.unload_vector("calm")
        assert client.detokenize(client.tokenize("hi")) == "hi"
        assert client.get_vector("calm").sha256
        assert client.server_stats().serving
    with guarded.client(ADMIN) as client:
        with pytest.raises(NotFoundError):
            client.load_vector("x", path_on_server="none.safetensors")
        assert client.model().facts.name
        for call in (lambda: client.generate("hi", sampling=ONE), lambda: client.tokenize("hi")):
            with pytest.raises(PermissionDeniedError, match="scope generate"):
                call()


def test_headers_that_are_no_bearer_token_are_not_let_in(guarded: Guarded) -> None:
    right = ("authorization", f"bearer {GENERATE}")
    request = generation_pb2.GenerateRequest(
        spec=generation_pb2.GenerationSpec(
            text="hi", sampling=generation_pb2.SamplingParams(max_token_count=1)
        )
    ).SerializeToString()
    with guarded.channel() as channel:
        method = channel.unary_unary("/steering.v1.GenerationService/Generate")
        assert method(request, metadata=[right])
        for wrong in (
            [("authorization", GENERATE)],
            [("authorization", f"Basic {GENERATE}")],
            [("authorization", f"Bearer {GENERATE} ")],
            [("authorization", "Bearer " + "x" * 4000)],
            [("authorization", "")],
            [right, right],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                method(request, metadata=wrong)
            assert failure(caught.value).reason == "UNKNOWN_TOKEN"


def test_a_refused_call_is_not_even_read(guarded: Guarded) -> None:
    with guarded.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/steering.v1.GenerationService/Generate")(b"\xff no message")
    assert failure(caught.value).reason == "NO_TOKEN"


def test_health_is_told_to_everybody_and_the_schema_is_not(guarded: Guarded) -> None:
    with guarded.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([ask])))
        assert failure(caught.value).reason == "NO_TOKEN"
        [answer] = reflect(iter([ask]), metadata=[("authorization", f"Bearer {ADMIN}")])
        names = {service.name for service in answer.list_services_response.service}
        assert {service.full_name for service in api_services()} < names


def test_every_method_says_which_scope_it_needs() -> None:
    methods = {
        f"/{service.full_name}/{method.name}" for service in api_services() for method in service.methods
    }
    assert set(SCOPES) == methods


def test_metrics_tell_when_the_certificate_expires(guarded: Guarded) -> None:
    told = guarded.server.metrics()["steering_certificate_expiry_timestamp_seconds"]
    assert told == pytest.approx((datetime.now(UTC) + 90 * DAY).timestamp(), abs=3600)


def test_no_secret_reaches_the_log(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded.client(GENERATE) as client:
        client.generate("a private prompt", sampling=ONE)
    with guarded.client(UNKNOWN) as client, pytest.raises(UnauthenticatedError):
        client.model()
    wait_until(lambda: "UNAUTHENTICATED UNKNOWN_TOKEN" in caplog.text)
    [done] = [record for record in caplog.records if "Generate OK" in record.getMessage()]
    assert vars(done)["notes"]["caller"] == "alice"
    told = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    for secret in (GENERATE, UNKNOWN, ADMIN, "private prompt"):
        assert secret not in told


def test_a_client_does_not_talk_to_a_server_that_it_does_not_know(guarded: Guarded) -> None:
    strangers = [
        guarded.client(GENERATE, ca=Authority("another authority").ca),
        guarded.client(GENERATE, name="another.example"),
        Client(guarded.server.address, token=GENERATE),  # this machine, without TLS
    ]
    for client in strangers:
        with client, pytest.raises(ConnectionFailedError) as caught:
            client.model(timeout=20)
        assert GENERATE not in str(caught.value)


def test_tokens_are_read_again(guarded: Guarded) -> None:
    path = guarded.folder / "tokens"
    with guarded.client(GENERATE) as client, guarded.client(UNKNOWN) as other:
        assert client.model().facts.name
        write_secret(path, f"bob generate {UNKNOWN}\n")
        wait_until(lambda: lets_in(other))
        assert not lets_in(client)
        write_secret(path.with_name("again"), TOKENS)
        os.replace(path.with_name("again"), path)  # noqa: PTH105 -- named like what it does
        wait_until(lambda: lets_in(client))
        assert not lets_in(other)


def lets_in(client: Client) -> bool:
    try:
        client.model()
    except UnauthenticatedError:
        return False
    return True


def test_a_new_certificate_is_shown_to_new_connections(guarded: Guarded) -> None:
    new = AUTHORITY.sign()
    with guarded.client(GENERATE) as client:
        before = client.model()
        assert shown(guarded.server.address) != new.cert.decode()
        new.write(guarded.folder)
        wait_until(lambda: shown(guarded.server.address) == new.cert.decode())
        assert client.model() == before  # on its old connection
        with guarded.client(GENERATE) as fresh:
            assert fresh.model() == before


def shown(address: str) -> str:
    """The certificate that a server shows, in PEM."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


@pytest.fixture(scope="module")
def mutual(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that asks its clients for a certificate."""
    folder = tmp_path_factory.mktemp("mutual")
    cert, key = AUTHORITY.sign().write(folder)
    ca = folder / "ca.pem"
    ca.write_bytes(AUTHORITY.ca)
    with LiveServer(model_folder, tls_cert=cert, tls_key=key, tls_client_ca=ca) as server:
        yield server


class TestMutualTls:
    def test_a_client_with_a_certificate_of_the_authority_is_let_in(
        self, mutual: LiveServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        cert, key = AUTHORITY.sign("client").write(tmp_path)
        ca = tmp_path / "ca.pem"
        ca.write_bytes(AUTHORITY.ca)
        with Client(mutual.address, tls=Tls(ca=ca, cert=cert, key=key)) as client:
            assert client.generate("hi", sampling=ONE).tokens
        [record] = [record for record in caplog.records if "Generate OK" in record.getMessage()]
        assert vars(record)["notes"]["caller"] == "client"

    @pytest.mark.parametrize(
        "pair",
        [
            None,
            Authority("another authority").sign("client"),
            AUTHORITY.sign("client", begins=-2 * DAY, ends=-DAY),
        ],
        ids=["no certificate", "certificate of another authority", "expired certificate"],
    )
    def test_others_are_not(self, mutual: LiveServer, pair: Pair | None) -> None:
        tls = Tls(ca=AUTHORITY.ca) if pair is None else Tls(ca=AUTHORITY.ca, cert=pair.cert, key=pair.key)
        with Client(mutual.address, tls=tls) as client, pytest.raises(ConnectionFailedError):
            client.model(timeout=20)

    def test_the_key_of_a_client_is_not_shown(self) -> None:
        pair = AUTHORITY.sign()
        assert "PRIVATE" not in repr(Tls(cert=pair.cert, key=pair.key))
        with pytest.raises(ValueError, match="go together"):
            Tls(cert=pair.cert)


def test_a_server_whose_certificate_has_expired_is_not_talked_to() -> None:
    def credentials(ends: timedelta) -> grpc.ServerCredentials:
        pair = AUTHORITY.sign(begins=-2 * DAY, ends=ends)
        read = Certificates(pair.cert, pair.key, None, datetime.now(UTC) + ends)
        return ServerCredentials(lambda: read).grpc()

    def meets(ends: timedelta) -> grpc.StatusCode:
        server = grpc.server(None, options=[("grpc.so_reuseport", 0)])
        port = server.add_secure_port("127.0.0.1:0", credentials(ends))
        server.start()
        channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(AUTHORITY.ca))
        with channel:
            code = code_of(lambda: channel.unary_unary("/a/b")(b"", timeout=20))
        server.stop(None).wait()
        return code

    assert meets(DAY) is grpc.StatusCode.UNIMPLEMENTED  # a server that answers
    assert meets(-DAY) is grpc.StatusCode.UNAVAILABLE


def test_without_tls_a_token_goes_to_this_machine_only(model_folder: Path, tmp_path: Path) -> None:
    for target in ("192.0.2.1:1", "example.org:1", "localhost.example.org:1", "127.0.0.1:1,192.0.2.1:1"):
        with pytest.raises(ValueError, match="over TLS or to this machine only") as caught:
            Client(target, token=GENERATE)
        assert GENERATE not in str(caught.value)
    for target in ("localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "unix:/tmp/none"):
        Client(target, token=GENERATE).close()
    for text in ("two words", "line\nbreak", "", "ünfug"):
        with pytest.raises(ValueError, match="a token is made of") as caught:
            Client("localhost:1", token=text)
        assert not text or text not in str(caught.value)
    tokens = write_secret(tmp_path / "tokens", TOKENS)
    with LiveServer(model_folder, token_file=tokens) as server:
        with Client(server.address, token=GENERATE) as client:
            assert client.generate("hi", sampling=ONE).tokens
        with Client(server.address) as client, pytest.raises(UnauthenticatedError):
            client.model()
