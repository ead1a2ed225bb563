"""Streams and clients that are closed while somebody waits for them, and clients that are used after that."""

from __future__ import annotations

import asyncio
import threading

import pytest

from steering_client import AsyncClient, CallCancelledError, Client, SamplingParams
from tests.support.server import LiveServer

LONG = SamplingParams(temperature=0, max_tokens=8000, min_tokens=8000)


def test_a_stream_that_another_thread_closes_has_come_to_its_last_delta(live: LiveServer) -> None:
    with Client(live.address) as client:
        stream = client.stream("hello", sampling=LONG)
        closing = threading.Timer(0.2, stream.close)
        closing.start()
        assert 0 < sum(1 for _ in stream) < LONG.max_tokens  # type: ignore[operator] -- it is set above
        closing.join()
    live.wait_idle()


async def test_a_stream_that_another_task_closes_has_come_to_its_last_delta(live: LiveServer) -> None:
    async with AsyncClient(live.address) as client:
        stream = client.stream("hello", sampling=LONG)
        await anext(stream)
        asyncio.get_running_loop().call_later(0.2, stream.close)
        assert [delta async for delta in stream]
    await asyncio.to_thread(live.wait_idle)


def test_a_client_that_is_closed_ends_its_calls(live: LiveServer) -> None:
    client = Client(live.address)
    stream = client.stream("hello", sampling=LONG)
    next(stream)
    closing = threading.Timer(0.2, client.close)
    closing.start()
    with pytest.raises(CallCancelledError):
        list(stream)
    closing.join()
    live.wait_idle()


async def test_tasks_whose_calls_a_closed_client_ends_are_told_so_and_not_cancelled(live: LiveServer) -> None:
    client = AsyncClient(live.address)
    stream = client.stream("hello", sampling=LONG)
    await anext(stream)

    async def read() -> None:
        async for _ in stream:
            pass

    tasks = [asyncio.create_task(read()), asyncio.create_task(client.generate("hello", sampling=LONG))]
    await asyncio.sleep(0.2)
    await client.close()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [CallCancelledError] * 2
    await asyncio.to_thread(live.wait_idle)


def test_a_client_that_is_closed_makes_no_calls(live: LiveServer) -> None:
    client = Client(live.address)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.model()
    with pytest.raises(ValueError, match="closed"):
        client.stream("hello")


async def test_a_client_of_asyncio_that_is_closed_makes_no_calls(live: LiveServer) -> None:
    client = AsyncClient(live.address)
    await client.close()
    with pytest.raises(ValueError, match="closed"):
        await client.model()
    with pytest.raises(ValueError, match="closed"):
        await anext(client.stream("hello"))
