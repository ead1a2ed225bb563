"""Replicas behind load balancers, configured as in examples/deploy, and behind a client's own choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from steering_client import (
    Client,
    CompletionStream,
    NotFoundError,
    SamplingParams,
    SteeringRule,
    Tls,
    UnauthenticatedError,
    UnavailableError,
)
from tests.support.balancers import envoy, find_program, nginx
from tests.support.certificates import Authority, write_secret
from tests.support.server import LiveServer, wait_until

AUTHORITY = Authority()
TOKEN = "generate-token-0123456789"  # noqa: S105 -- of no other server
Balancer = Callable[[Sequence[LiveServer], Authority, Path], AbstractContextManager[str]]
GREEDY = SamplingParams(temperature=0, max_tokens=8)
needs_envoy = pytest.mark.skipif(find_program("envoy") is None, reason="no envoy is on the path")
needs_nginx = pytest.mark.skipif(find_program("nginx") is None, reason="no nginx is on the path")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Settings of replicas: TLS, a token, and no grace to speak of."""
    folder = tmp_path_factory.mktemp("secrets")
    cert, key = AUTHORITY.sign().write(folder)
    tokens = write_secret(folder / "tokens", f"alice generate {TOKEN}\n")
    return {"tls_cert": cert, "tls_key": key, "token_file": tokens}


@contextmanager
def replica(model_folder: Path, vector_folder: Path, secrets: dict[str, Path]) -> Iterator[LiveServer]:
    with LiveServer(model_folder, vectors=vector_folder, **secrets) as server:
        yield server


@pytest.fixture(scope="module")
def first(model_folder: Path, vector_folder: Path, secrets: dict[str, Path]) -> Iterator[LiveServer]:
    with replica(model_folder, vector_folder, secrets) as server:
        yield server


@pytest.fixture(scope="module")
def second(model_folder: Path, vector_folder: Path, secrets: dict[str, Path]) -> Iterator[LiveServer]:
    with replica(model_folder, vector_folder, secrets) as server:
        yield server


def client_of(address: str) -> Client:
    return Client(address, tls=Tls(ca=AUTHORITY.ca), token=TOKEN)


def generate_beside_each_other(client: Client, count: int) -> set[str]:
    """The texts of so many steered requests, all sent at once."""
    with ThreadPoolExecutor(count) as senders:
        done = [
            senders.submit(client.generate, "hi", sampling=GREEDY, steering=SteeringRule("calm"))
            for _ in range(count)
        ]
        return {one.result().text for one in done}


def answers(client: Client, count: int) -> bool:
    """Whether so many calls in a row are answered."""
    with suppress(UnavailableError):
        return all(client.model() for _ in range(count))
    return False


@pytest.mark.parametrize(
    "balancer", [pytest.param(envoy, marks=needs_envoy), pytest.param(nginx, marks=needs_nginx)]
)
class TestBalancers:
    def test_work_is_shared_and_everything_passes_through(
        self, balancer: Balancer, first: LiveServer, second: LiveServer, tmp_path: Path
    ) -> None:
        with (
            balancer([first, second], AUTHORITY, tmp_path) as address,
            client_of(address) as client,
        ):
            client.wait_ready(timeout=30)
            before = [one.stats().generated_tokens for one in (first, second)]
            with client_of(first.address) as direct:
                alone = direct.generate("hi", sampling=GREEDY, steering=SteeringRule("calm")).text
            assert generate_beside_each_other(client, 16) == {alone}
            after = [one.stats().generated_tokens for one in (first, second)]
            assert all(now > then + 8 for now, then in zip(after, before, strict=True))

            with pytest.raises(NotFoundError) as caught:
                client.generate("hi", steering=SteeringRule("absent"), request_id="r-1")
            assert [one.field for one in caught.value.violations] == ["steering.rules[0].vector"]
            assert (caught.value.reason, caught.value.request_id) == ("NOT_FOUND", "r-1")
            with (
                Client(address, tls=Tls(ca=AUTHORITY.ca), token=TOKEN[::-1]) as stranger,
                pytest.raises(UnauthenticatedError),
            ):
                stranger.model()

            # A stream that is left is ended at its replica.
            with client.stream("hi", sampling=SamplingParams(max_tokens=8000)) as stream:
                next(stream)
            first.wait_idle()
            second.wait_idle()


@needs_envoy
def test_a_replica_that_stops_loses_nothing(
    first: LiveServer, model_folder: Path, vector_folder: Path, secrets: dict[str, Path], tmp_path: Path
) -> None:
    with (
        replica(model_folder, vector_folder, secrets) as leaving,
        envoy([first, leaving], AUTHORITY, tmp_path) as address,
        client_of(address) as client,
    ):
        client.wait_ready(timeout=30)
        with ExitStack() as open_streams:
            streams: list[CompletionStream] = []
            # Envoy compares two replicas that it draws, which may be the same one.
            while not all(server.stats().active_requests for server in (first, leaving)):
                sampling = SamplingParams(max_tokens=400, min_tokens=400, seed=len(streams))
                streams.append(open_streams.enter_context(client.stream("hi", sampling=sampling)))
                next(streams[-1])
            leaving.begin_stop()
            # Until Envoy has looked, a call in four at least meets the one that leaves.
            wait_until(lambda: answers(client, 40))
            for stream in streams:
                list(stream)
        assert {len(stream.completion.tokens) for stream in streams} == {400}


def test_a_client_shares_its_calls_among_the_addresses_of_its_target(
    live: LiveServer, model_folder: Path, vector_folder: Path
) -> None:
    with LiveServer(model_folder, vectors=vector_folder) as second:
        before = live.stats().generated_tokens
        with Client(f"ipv4:{live.address},{second.address}") as client:
            wait_until(lambda: _both_have_answered(client, live, second, before))


def _both_have_answered(client: Client, live: LiveServer, second: LiveServer, before: int) -> bool:
    client.generate("hi", sampling=GREEDY)
    return live.stats().generated_tokens > before and second.stats().generated_tokens > 2
