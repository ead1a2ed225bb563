"""One request for several completions, through both clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from steering_client import (
    AsyncClient,
    Client,
    Completion,
    InternalError,
    InvalidArgumentError,
    SamplingParams,
    Selector,
    SteeringRule,
    StreamDelta,
)
from tests.support.server import LiveServer

THREE = SamplingParams(max_tokens=12, seed=20, n=3)
LONG = SamplingParams(temperature=0, max_tokens=8000, n=3)
RULE = SteeringRule("calm", selector=Selector.step_window(2, 5))


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.address) as opened:
        yield opened


@pytest_asyncio.fixture
async def async_client(live: LiveServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(live.address) as opened:
        yield opened


def add_up(deltas: list[StreamDelta], completions: tuple[Completion, ...]) -> None:
    """Asserts that the deltas of every completion add up to it."""
    assert {delta.index for delta in deltas} == {completion.index for completion in completions}
    for completion in completions:
        own = [delta for delta in deltas if delta.index == completion.index]
        assert "".join(delta.text for delta in own) == completion.text
        assert tuple(token for delta in own for token in delta.tokens) == completion.tokens
        assert tuple(act for delta in own for act in delta.acts) == completion.acts


def without_times(completions: tuple[Completion, ...]) -> list[tuple[object, ...]]:
    return [(one.index, one.seed, one.tokens, one.text, one.acts) for one in completions]


def test_several_completions_are_those_of_as_many_seeds(client: Client) -> None:
    completions = client.generate_many("hello", sampling=THREE, steering=RULE)
    assert [(one.index, one.seed) for one in completions] == [(0, 20), (1, 21), (2, 22)]
    for completion in completions:
        alone = client.generate(
            "hello", sampling=SamplingParams(max_tokens=12, seed=completion.seed), steering=RULE
        )
        assert completion.tokens == alone.tokens
        assert completion.applied_steering == alone.applied_steering


def test_one_of_many_is_one(client: Client) -> None:
    [completion] = client.generate_many("hello", sampling=SamplingParams(max_tokens=12, seed=20))
    assert completion.tokens == client.generate_many("hello", sampling=THREE)[0].tokens


def test_a_stream_of_several_adds_up_to_each(client: Client) -> None:
    stream = client.stream("hello", sampling=THREE, steering=RULE, steering_trace=True)
    deltas = list(stream)
    add_up(deltas, stream.completions)
    expected = client.generate_many("hello", sampling=THREE, steering=RULE, steering_trace=True)
    assert without_times(stream.completions) == without_times(expected)
    assert [act.step for act in stream.completions[2].acts] == [2, 3, 4]


def test_a_stream_of_one_has_its_completion_under_both_names(client: Client) -> None:
    stream = client.stream("hello", sampling=SamplingParams(max_tokens=4, seed=1))
    assert {delta.index for delta in stream} == {0}
    assert stream.completions == (stream.completion,)


def test_one_completion_of_several_is_no_answer(client: Client) -> None:
    with pytest.raises(ValueError, match=r"n = 3 are asked for; use generate_many"):
        client.generate("hello", sampling=THREE)
    stream = client.stream("hello", sampling=THREE)
    for _ in stream:
        pass
    with pytest.raises(ValueError, match=r"n = 3 completions; use completions"):
        _ = stream.completion


def test_a_stream_that_is_closed_frees_the_rows_of_all(client: Client, live: LiveServer) -> None:
    with client.stream("hello", sampling=LONG) as stream:
        next(stream)
    live.wait_idle()
    with pytest.raises(InternalError, match="not come to its end"):
        _ = stream.completions


def test_a_wrong_number_of_completions_is_not_sent(client: Client) -> None:
    for count in (0, 129):
        with pytest.raises(InvalidArgumentError, match=r"sampling\.completion_count"):
            client.generate_many("hello", sampling=SamplingParams(n=count))
        with pytest.raises(InvalidArgumentError, match=r"sampling\.completion_count"):
            client.stream("hello", sampling=SamplingParams(n=count))


async def test_the_asyncio_client_makes_several_completions_too(
    async_client: AsyncClient, live: LiveServer
) -> None:
    completions = await async_client.generate_many(
        "hello", sampling=THREE, steering=RULE, steering_trace=True
    )
    stream = async_client.stream("hello", sampling=THREE, steering=RULE, steering_trace=True)
    deltas = [delta async for delta in stream]
    add_up(deltas, stream.completions)
    assert without_times(stream.completions) == without_times(completions)
    assert [one.seed for one in completions] == [20, 21, 22]
    with pytest.raises(ValueError, match="use generate_many"):
        await async_client.generate("hello", sampling=THREE)
