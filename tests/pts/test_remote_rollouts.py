"""Rollouts through real servers are those of the engine here, whatever happens to the servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from steering_engine.model import SteeredModel
from steering_pts import remote_rollouts
from steering_pts.cli.run import RunFolder
from steering_pts.errors import EndpointError
from steering_pts.remote_rollouts import RemoteRollouts, _End
from steering_pts.rollouts import Rollout, RolloutRequest
from steering_pts.settings import SamplerSettings
from steering_spec import FinishReason
from tests.support.models import save_tiny_model
from tests.support.pts import SAMPLER, discover_arguments, rollouts_of, run_pts, write_problems
from tests.support.server import LiveServer

REQUESTS = [
    RolloutRequest(
        prefix_ids=tuple(range(start, start + 3 + start % 5)),
        max_tokens=1 + start % 8,
        seed=7_000_000_000_000 + start,
        banned_first_ids=tuple(range(start % 3 * 20)),
    )
    for start in range(2, 62)
]
SAMPLERS = [SAMPLER, SamplerSettings(temperature=0.7, top_p=0.93, top_k=60, max_tokens=8, min_p=0.013)]


@pytest.fixture(scope="module")
def server(ending_folder: Path) -> Iterator[LiveServer]:
    with LiveServer(ending_folder) as running:
        yield running


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of a model whose completions seldom end by themselves, so that there is text."""
    with LiveServer(save_tiny_model(tmp_path_factory.mktemp("models") / "talking")) as running:
        yield running


def local(model: SteeredModel, sampler: SamplerSettings = SAMPLER) -> list[Rollout]:
    with rollouts_of(model, sampler) as source:
        return source.sample(REQUESTS)


def remote(
    model: SteeredModel, servers: Sequence[LiveServer], sampler: SamplerSettings = SAMPLER
) -> list[Rollout]:
    with RemoteRollouts([one.address for one in servers], model, sampler) as source:
        return source.sample(REQUESTS)


def generated(server: LiveServer) -> int:
    return server.stats().generated_tokens


def unused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


class Closed:
    """Has seen enough when a text holds a letter of the alphabet for the second time."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def __call__(self, piece: str) -> bool:
        self.pieces.append(piece)
        text = "".join(self.pieces)
        return sum(character.isalpha() for character in text) >= 2


def closing() -> list[RolloutRequest]:
    return [replace(request, max_tokens=24, until=Closed()) for request in REQUESTS]


def pieces(requests: Sequence[RolloutRequest]) -> list[list[str]]:
    return [request.until.pieces for request in requests]  # type: ignore[union-attr]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_they_are_those_of_the_engine_here(
    model: SteeredModel, server: LiveServer, sampler: SamplerSettings
) -> None:
    assert remote(model, [server], sampler) == local(model, sampler)


def test_every_finished_one_is_told(model: SteeredModel, server: LiveServer) -> None:
    told: dict[int, Rollout] = {}
    with RemoteRollouts([server.address], model, SAMPLER) as source:
        rollouts = source.sample(REQUESTS, told.__setitem__)
    assert [told[index] for index in range(len(REQUESTS))] == rollouts


def test_several_servers_share_the_work(model: SteeredModel, server: LiveServer, ending_folder: Path) -> None:
    with LiveServer(ending_folder) as second:
        before = generated(server)
        rollouts = remote(model, [server, second])
        shares = (generated(server) - before, generated(second) - 2)  # two tokens warmed it up
    assert rollouts == local(model)
    assert sum(shares) == sum(len(rollout.ids) for rollout in rollouts)
    assert min(shares) > sum(shares) / 4


def test_they_end_early_with_the_same_token_as_here_after_the_same_text(
    talking: LiveServer,
) -> None:
    ours, theirs = closing(), closing()
    with rollouts_of(talking.model) as source:
        expected = source.sample(ours)
    with RemoteRollouts([talking.address], talking.model, SAMPLER) as source:
        assert source.sample(theirs) == expected
    assert pieces(theirs) == pieces(ours)
    reasons = {rollout.finish_reason for rollout in expected}
    assert reasons == {FinishReason.STOP_SEQUENCE, FinishReason.EOS, FinishReason.LENGTH}
    talking.wait_idle()


def test_what_until_was_told_by_a_server_that_failed_is_not_told_again(model: SteeredModel) -> None:
    closed = Closed()
    end = _End(closed, model.loaded.tokenizer)
    ids = model.loaded.tokenizer("1a2b3")["input_ids"]
    end.begin("first")
    assert [end.comes_with(one) for one in ids[:2]] == [False, False]
    end.begin("second")
    assert [end.comes_with(one) for one in ids[:4]] == [False, False, False, True]
    assert closed.pieces == ["1", "a", "2", "b"]


def test_another_text_than_that_of_the_server_that_failed_is_an_error(model: SteeredModel) -> None:
    end = _End(Closed(), model.loaded.tokenizer)
    first, second = model.loaded.tokenizer("ab")["input_ids"]
    end.begin("first")
    end.comes_with(first)
    end.begin("second")
    with pytest.raises(EndpointError, match=r"^second gives another text"):
        end.comes_with(second)


def test_what_until_raises_ends_the_sampling(talking: LiveServer) -> None:
    def broken(piece: str) -> bool:
        raise LookupError(piece)

    requests = [replace(REQUESTS[0], max_tokens=64, until=broken)]
    with (
        RemoteRollouts([talking.address], talking.model, SAMPLER) as source,
        pytest.raises(LookupError),
    ):
        source.sample(requests)
    talking.wait_idle()


def test_a_full_server_is_asked_again_until_all_is_done(model: SteeredModel, ending_folder: Path) -> None:
    with LiveServer(ending_folder, max_queued=30) as small:
        assert remote(model, [small]) == local(model)


def test_the_work_of_a_server_that_stops_goes_to_the_others(
    model: SteeredModel, server: LiveServer, ending_folder: Path
) -> None:
    with (
        LiveServer(ending_folder) as second,
        RemoteRollouts([server.address, second.address], model, SAMPLER) as source,
    ):
        second.close_engine()
        assert source.sample(REQUESTS) == local(model)


def test_a_server_that_was_given_up_is_not_asked_again(
    model: SteeredModel, server: LiveServer, ending_folder: Path
) -> None:
    with (
        LiveServer(ending_folder) as second,
        RemoteRollouts([server.address, second.address], model, SAMPLER, patience=0.0) as source,
    ):
        second.close_engine()
        source.sample(REQUESTS)
        assert [one.lost for one in source._servers] == [False, True]


def test_when_no_server_is_left_every_one_is_named_and_the_run_can_be_continued(
    model: SteeredModel, ending_folder: Path
) -> None:
    with LiveServer(ending_folder) as first, LiveServer(ending_folder) as second:
        endpoints = [first.address, second.address]
        with RemoteRollouts(endpoints, model, SAMPLER, patience=0.2) as source:
            first.close_engine()
            second.close_engine()
            with pytest.raises(EndpointError) as caught:
                source.sample(REQUESTS)
    message = str(caught.value)
    assert message.startswith(f"no server is left ({first.address}: ")
    assert f"; {second.address}: " in message
    assert "the same command goes on where this one stopped" in message


def test_a_refused_request_names_the_server(model: SteeredModel, server: LiveServer) -> None:
    with RemoteRollouts([server.address], model, SAMPLER) as source:
        too_long = replace(REQUESTS[0], max_tokens=1_000_000)
        with pytest.raises(EndpointError, match=rf"^{server.address} refused a rollout: .*max_token_count"):
            source.sample([too_long])


def test_servers_of_other_models_are_all_refused_before_any_work(
    model: SteeredModel, server: LiveServer, tmp_path: Path
) -> None:
    wide = save_tiny_model(tmp_path / "wide", "qwen3", hidden_size=64)
    with LiveServer(wide) as other, LiveServer(wide, dtype="bfloat16") as half:
        endpoints = [other.address, server.address, half.address]
        with pytest.raises(EndpointError) as caught:
            RemoteRollouts(endpoints, model, SAMPLER)
        theirs = other.model.info.config_digest
    ours = model.info.config_digest
    assert str(caught.value).split("; ") == [
        f"{other.address} serves another model configuration than the one loaded here: {theirs}, not {ours}",
        f"{half.address} serves another model configuration than the one loaded here: {theirs}, not {ours}",
        f"{half.address} serves another dtype than the one loaded here: bfloat16, not float32",
    ]


def test_a_server_with_a_shorter_context_is_refused(model: SteeredModel, ending_folder: Path) -> None:
    with (
        LiveServer(ending_folder, max_context=100) as short,
        pytest.raises(EndpointError, match="contexts of 100 tokens at most"),
    ):
        RemoteRollouts([short.address], model, SAMPLER)


def test_a_server_that_is_not_there_is_told_beside_an_address_that_is_none(
    model: SteeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_rollouts, "_CONNECT_SECONDS", 0.5)
    address = unused_address()
    with pytest.raises(EndpointError) as caught:
        RemoteRollouts([address, "localhost"], model, SAMPLER)
    assert str(caught.value) == (
        f"no server answered at {address} within 0.5 s; "
        "'localhost' is no address of a server; expected HOST:PORT"
    )


def test_a_run_through_servers_ends_as_one_without_and_may_be_continued_without(
    server: LiveServer, ending_folder: Path, tmp_path: Path
) -> None:
    problems = write_problems(tmp_path / "problems.jsonl", 3)
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    before = generated(server)
    for folder, *more in ((here,), (there, "--endpoint", server.address), (there,)):
        ended = run_pts(*discover_arguments(folder.path, ending_folder, problems, *more))
        assert ended.code == 0, ended.err
    assert generated(server) > before
    assert there.pivots.read_bytes() == here.pivots.read_bytes()
    with here.read() as one, there.read() as other:
        assert one.settings() == other.settings()
