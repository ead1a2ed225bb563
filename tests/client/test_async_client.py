"""The asyncio client against a real server: what it does like `Client`, and what only tasks can do."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from steering_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    SamplingParams,
    Selector,
    SteeringRule,
)
from tests.support.server import LiveServer, wait_until
from tests.support.vectors import save_random_vector

GREEDY = SamplingParams(temperature=0, max_tokens=16)
LONG = SamplingParams(temperature=0, max_tokens=8000)


@pytest_asyncio.fixture
async def client(live: LiveServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(live.address) as opened:
        yield opened


async def wait_idle(live: LiveServer) -> None:
    await asyncio.to_thread(live.wait_idle)


async def test_the_model_is_the_one_that_is_served(client: AsyncClient, live: LiveServer) -> None:
    assert await client.wait_ready(timeout=10) == live.model.info
    assert await client.model() == live.model.info


async def test_both_clients_get_the_same_answer(client: AsyncClient, live: LiveServer) -> None:
    sampling = SamplingParams(max_tokens=16, seed=3)
    rule = SteeringRule("calm", selector=Selector.step_window(1, 4))
    answer = await client.generate("hello", sampling=sampling, steering=rule, steering_trace=True)
    with Client(live.address) as other:
        expected = await asyncio.to_thread(
            other.generate, "hello", sampling=sampling, steering=rule, steering_trace=True
        )
    assert answer.tokens == expected.tokens
    assert answer.acts == expected.acts
    assert answer.applied_steering == expected.applied_steering


async def test_a_stream_adds_up_to_its_completion(client: AsyncClient) -> None:
    rule = SteeringRule("calm", selector=Selector.step_window(2, 6))
    stream = client.stream("hello", sampling=GREEDY, steering=rule, steering_trace=True)
    deltas = [delta async for delta in stream]
    completion = stream.completion
    assert "".join(delta.text for delta in deltas) == completion.text
    assert tuple(token for delta in deltas for token in delta.tokens) == completion.tokens
    assert tuple(act for delta in deltas for act in delta.acts) == completion.acts


async def test_many_requests_run_at_once_and_each_gets_its_own_answer(client: AsyncClient) -> None:
    prompts = [f"number {number}" for number in range(24)]
    rules = [SteeringRule("calm", strength=number / 10) for number in range(24)]
    together = await asyncio.gather(
        *(client.generate(p, sampling=GREEDY, steering=r) for p, r in zip(prompts, rules, strict=True))
    )
    for prompt, rule, answer in zip(prompts, rules, together, strict=True):
        assert (await client.generate(prompt, sampling=GREEDY, steering=rule)).ids == answer.ids


async def test_a_cancelled_task_frees_its_row(client: AsyncClient, live: LiveServer) -> None:
    task = asyncio.create_task(client.generate("hello", sampling=LONG))
    await asyncio.to_thread(wait_until, lambda: live.stats().active_requests == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_idle(live)


async def test_a_cancelled_reader_of_a_stream_frees_its_row(client: AsyncClient, live: LiveServer) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async for _ in client.stream("hello", sampling=LONG):
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_idle(live)


async def test_a_stream_that_is_closed_frees_its_row(client: AsyncClient, live: LiveServer) -> None:
    async with client.stream("hello", sampling=LONG) as stream:
        await anext(stream)
    await wait_idle(live)
    assert [delta async for delta in stream] == []
    with pytest.raises(InternalError, match="not come to its end"):
        _ = stream.completion


async def test_a_timeout_ends_the_call_and_frees_its_row(client: AsyncClient, live: LiveServer) -> None:
    with pytest.raises(DeadlineExceededError):
        await client.generate("hello", sampling=LONG, timeout=0.3)
    with pytest.raises(DeadlineExceededError):
        _ = [delta async for delta in client.stream("hello", sampling=LONG, timeout=0.3)]
    await wait_idle(live)


async def test_errors_carry_what_the_server_found(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.generate("hello", steering=SteeringRule("absent"), request_id="q")
    assert (caught.value.reason, caught.value.request_id) == ("NOT_FOUND", "q")
    assert [violation.field for violation in caught.value.violations] == ["steering.rules[0].vector"]
    with pytest.raises(NotFoundError):
        await anext(client.stream("hello", steering=SteeringRule("absent")))


async def test_a_wrong_request_is_not_sent(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError):
        await client.generate("hello", sampling=SamplingParams(top_p=2))
    with pytest.raises(InvalidArgumentError):
        client.stream("hello", sampling=SamplingParams(top_p=2))


async def test_vectors_are_listed_and_loaded(model_folder: Path, tmp_path: Path) -> None:
    with LiveServer(model_folder, vectors=tmp_path) as server:
        async with AsyncClient(server.address) as client:
            path = save_random_vector(tmp_path, server.model.loaded, "one", [0])
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            for number in range(60):
                await client.load_vector(f"v{number:02}", path_on_server="one.safetensors", sha256=digest)
            await client.load_vector("sent", file=path.read_bytes())
            names = [info.name for info in await client.list_vectors()]
    assert names == ["vectors/sent", *(f"vectors/v{number:02}" for number in range(60))]


async def test_what_is_asked_of_model_and_server_is_what_the_other_client_gets(
    client: AsyncClient, live: LiveServer
) -> None:
    with Client(live.address) as other:
        assert await client.tokenize("hëllo") == other.tokenize("hëllo")
        assert await client.detokenize([104, 105]) == other.detokenize([104, 105])
        assert await client.get_vector("calm") == other.get_vector("calm")
        assert (await client.server_stats()).started == other.server_stats().started


async def test_a_timeout_of_unloading_ends_the_waiting_alone(model_folder: Path, tmp_path: Path) -> None:
    with LiveServer(model_folder) as server:
        path = save_random_vector(tmp_path, server.model.loaded, "one", [0])
        async with AsyncClient(server.address) as client:
            await client.load_vector("one", file=path.read_bytes())
            async with client.stream("hello", sampling=LONG, steering=SteeringRule("one")) as stream:
                await anext(stream)
                task = asyncio.create_task(client.unload_vector("one"))
                await asyncio.to_thread(wait_until, lambda: server.model.vectors.count() == 0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert server.model.vectors.memory().used > 0
            await asyncio.to_thread(wait_until, lambda: server.model.vectors.memory().used == 0)
            assert await client.list_vectors(all_versions=True) == []


async def test_no_server_is_a_failed_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with AsyncClient(f"127.0.0.1:{unused.getsockname()[1]}") as client:
            with pytest.raises(ConnectionFailedError):
                await client.model(timeout=10)
            with pytest.raises(ConnectionFailedError, match="no server answered"):
                await client.wait_ready(timeout=0.3)


async def test_a_timeout_that_never_passes_waits_without_end(client: AsyncClient) -> None:
    assert (await client.generate("hello", sampling=GREEDY, timeout=float("inf"))).tokens
