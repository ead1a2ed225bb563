"""Vectors that are loaded, used, replaced and unloaded while requests run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from steering_client import (
    AsyncClient,
    Client,
    Completion,
    ContextTrigger,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    SamplingParams,
    SteeringRule,
)
from steering_engine.vectors.file import encode_vector
from tests.support.fixtures import CONTEXT
from tests.support.server import LiveServer, wait_until
from tests.support.vector_files import metadata_size
from tests.support.vectors import random_vector, save_random_vector

Requests = Sequence[dict[str, Any]]

LONG = SamplingParams(temperature=0, max_tokens=8000)
SHORT = SamplingParams(temperature=0, max_tokens=8)
LIKELY = tuple((token, 6.0) for token in CONTEXT)  # so that the context comes up by itself
CALM = SteeringRule("calm", strength=2.0)


@pytest.fixture(scope="module")
def server(
    model_folder: Path, vector_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server with `calm` and `pivot`, as every test has to leave it."""
    folder = tmp_path_factory.mktemp("vectors")
    for name in ("calm", "pivot"):
        (folder / f"{name}.safetensors").write_bytes((vector_folder / f"{name}.safetensors").read_bytes())
    with LiveServer(model_folder, vectors=folder) as running:
        yield running


@pytest_asyncio.fixture
async def client(server: LiveServer) -> AsyncIterator[AsyncClient]:
    """Of the server, which has what it had, in memory too, when the test is over."""
    registry = server.model.vectors
    before = registry.infos(all_versions=True), registry.memory(), registry.table_rows()
    async with AsyncClient(server.address) as opened:
        yield opened
    await asyncio.to_thread(wait_until, lambda: registry.memory() == before[1])
    assert (registry.infos(all_versions=True), registry.memory(), registry.table_rows()) == before


def file(server: LiveServer, seed: int, blocks: Sequence[int] = (0, 1), **options: Any) -> bytes:
    return encode_vector(random_vector(server.model.loaded, "made", blocks, seed=seed, **options))


async def run_streams(
    client: AsyncClient, requests: Requests, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> list[tuple[Any, ...]]:
    """What all requests give, streamed at once; `meanwhile` begins when each has its first token."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.stream(**request)) for request in requests]
        await asyncio.gather(*(anext(stream) for stream in streams))
        if meanwhile is not None:
            await meanwhile()

        async def rest(stream: Any) -> Completion:
            async for _ in stream:
                pass
            completion: Completion = stream.completion
            return completion

        return [answer(one) for one in await asyncio.gather(*map(rest, streams))]


def answer(completion: Completion) -> tuple[Any, ...]:
    """All of it but times: tokens with their log-probabilities to the bit, text, acts and what was applied."""
    return (
        completion.tokens,
        completion.text,
        completion.finish_reason,
        completion.acts,
        completion.applied_steering,
        completion.usage.steered_rows,
    )


async def test_running_streams_are_bit_identical_whatever_happens_to_their_vectors(
    client: AsyncClient, server: LiveServer
) -> None:
    steerings = (CALM, SteeringRule("pivot", trigger=ContextTrigger(min_match_tokens=2)), None)
    requests = [
        {
            "prompt": [*CONTEXT, 75 + number],
            "sampling": SamplingParams(max_tokens=240, min_tokens=240, seed=number, logit_bias=LIKELY),
            "steering": steerings[number % 3],
            "steering_trace": True,
        }
        for number in range(36)
    ]
    undisturbed = await run_streams(client, requests)
    assert [all(rows for *_, rows in undisturbed[kind::3]) for kind in range(3)] == [True, True, False]
    old = await client.get_vector("calm")
    unloading: list[asyncio.Task[Any]] = []

    async def change() -> None:
        fresh = await client.load_vector("fresh", file=file(server, 8))
        used = await client.generate("hi", sampling=SHORT, steering=SteeringRule("fresh"))
        assert used.applied_steering is not None
        assert used.applied_steering.rules[0].vector == fresh.pinned_name

        new = await client.load_vector("calm", file=file(server, 9), replace=True)
        for name, version in (("calm", new), (old.pinned_name, old)):
            used = await client.generate("hi", sampling=SHORT, steering=SteeringRule(name))
            assert used.applied_steering is not None
            assert used.applied_steering.rules[0].vector == version.pinned_name

        unloading.append(asyncio.create_task(client.unload_vector(old.pinned_name)))
        await asyncio.to_thread(wait_until, lambda: server.model.vectors.count() == 3)
        with pytest.raises(NotFoundError, match=f"no version of 'calm' with the digest {old.sha256}"):
            await client.generate("hi", sampling=SHORT, steering=SteeringRule(old.pinned_name))
        assert not unloading[0].done()  # twelve streams still use it
        assert (await client.unload_vector("fresh")).sha256 == fresh.sha256
        # The rows that were freed are taken by others while the streams run.
        for seed in range(20, 24):
            await client.load_vector("passing", file=file(server, seed))
            await client.unload_vector("passing")

    assert await run_streams(client, requests, change) == undisturbed
    assert (await unloading[0]).running_requests == 12
    await client.load_vector("calm", path_on_server="calm.safetensors", replace=True)
    (other,) = [one for one in await client.list_vectors(all_versions=True) if not one.current]
    await client.unload_vector(other.name)


async def test_an_unloading_that_nobody_waits_for_happens_all_the_same(
    client: AsyncClient, server: LiveServer
) -> None:
    loaded = await client.load_vector("brief", file=file(server, 10))
    before = (await client.server_stats()).vector_memory_bytes
    async with client.stream("hi", sampling=LONG, steering=SteeringRule("brief")) as stream:
        await anext(stream)
        with pytest.raises(DeadlineExceededError):
            await client.unload_vector("brief", timeout=0.2)
        for call in (client.get_vector, client.unload_vector):
            with pytest.raises(NotFoundError):
                await call("brief")
        with pytest.raises(NotFoundError):
            await client.generate("hi", steering=SteeringRule(loaded.pinned_name))
        assert (await client.server_stats()).vector_memory_bytes == before  # it is still read
        await anext(stream)
    # The fixture waits until its memory is free.


async def test_a_cancelled_request_gives_its_vectors_back(client: AsyncClient, server: LiveServer) -> None:
    await client.load_vector("brief", file=file(server, 10))
    async with client.stream("hi", sampling=LONG, steering=SteeringRule("brief")) as stream:
        await anext(stream)
        unloading = asyncio.create_task(client.unload_vector("brief"))
        await asyncio.to_thread(wait_until, lambda: server.model.vectors.count() == 2)
        assert not unloading.done()
    assert (await unloading).running_requests == 1


async def test_a_request_that_is_refused_holds_nothing(client: AsyncClient, server: LiveServer) -> None:
    await client.load_vector("brief", file=file(server, 10))
    with pytest.raises(FailedPreconditionError):
        await client.generate("hi", steering=[SteeringRule("brief"), SteeringRule("brief", layers=(2,))])
    assert (await client.unload_vector("brief")).running_requests == 0


async def test_the_default_steering_keeps_its_vectors(model_folder: Path, tmp_path: Path) -> None:
    default = tmp_path / "default.json"
    rule = {"vector": "calm", "layers": [0], "trigger": {"context": {}}}
    default.write_text(json.dumps({"rules": [rule]}))
    with LiveServer(model_folder) as server:
        contexts = {"contexts": [CONTEXT], "min_match": 2}
        save_random_vector(tmp_path, server.model.loaded, "calm", [0], seed=1, **contexts)
    with LiveServer(model_folder, vectors=tmp_path, default_steering=default) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(FailedPreconditionError, match="default steering uses it"):
                await client.unload_vector("calm")
            with pytest.raises(FailedPreconditionError) as caught:
                await client.load_vector("calm", file=file(server, 5, (1,)), replace=True)
            assert [fault.field for fault in caught.value.violations] == ["source", "source"]
            old = await client.get_vector("calm")
            new = await client.load_vector("calm", file=file(server, 6, **contexts), replace=True)
            await client.unload_vector(old.pinned_name)
            completion = await client.generate("hi", sampling=SHORT)
            assert completion.applied_steering is not None
            assert completion.applied_steering.rules[0].vector == new.pinned_name


def test_vectors_beyond_the_memory_are_refused(model_folder: Path, server: LiveServer) -> None:
    one = 2 * 2 * 4 * 32 + metadata_size(file(server, 1))  # float32, two blocks, as read and as rows
    with LiveServer(model_folder, vector_memory_bytes=2 * one) as small, Client(small.address) as client:
        for seed in (1, 2):
            client.load_vector(f"v{seed}", file=file(server, seed))
        with pytest.raises(ResourceExhaustedError) as caught:
            client.load_vector("v3", file=file(server, 3))
        assert caught.value.reason == "VECTOR_MEMORY_FULL"
        assert f"needs {one} bytes, and loaded vectors take {2 * one} of {2 * one} already" in str(
            caught.value
        )
        client.unload_vector("v1")
        client.load_vector("v3", file=file(server, 3))
        stats = client.server_stats()
        assert (stats.vectors, stats.vector_memory_bytes) == (2, 2 * one)
        assert stats.vector_memory_limit_bytes == 2 * one
