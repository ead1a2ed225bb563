"""The synchronous client against a real server."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steering_client import (
    AlreadyExistsError,
    Chat,
    ChatMessage,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    FailedPreconditionError,
    FinishReason,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PromptIds,
    PromptText,
    ResourceExhaustedError,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
    UnavailableError,
)
from steering_spec import InvalidRequestError, limits
from tests.support.server import LiveServer, wait_until
from tests.support.vectors import save_random_vector

GREEDY = SamplingParams(temperature=0, max_tokens=16)
LONG = SamplingParams(temperature=0, max_tokens=8000)


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.address) as opened:
        yield opened


def test_the_model_is_the_one_that_is_served(client: Client, live: LiveServer) -> None:
    assert client.wait_ready(timeout=10) == live.model.info
    assert client.model() == live.model.info


def test_generate_gives_the_completion(client: Client) -> None:
    completion = client.generate("hello", sampling=GREEDY, request_id="mine")
    assert len(completion.tokens) == 16
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.request_id == "mine"
    assert completion.applied_steering is None
    assert completion.usage.prompt_tokens == 5


def test_every_form_of_a_prompt_is_understood(client: Client) -> None:
    text = "[user]hi[end][assistant]"
    expected = client.generate(text, sampling=GREEDY).ids
    assert client.generate(PromptText(text), sampling=GREEDY).ids == expected
    assert client.generate([{"role": "user", "content": "hi"}], sampling=GREEDY).ids == expected
    assert client.generate([ChatMessage("user", "hi")], sampling=GREEDY).ids == expected
    assert client.generate(Chat((ChatMessage("user", "hi"),)), sampling=GREEDY).ids == expected
    ids = [40, 41, 42]
    assert (
        client.generate(ids, sampling=GREEDY).ids
        == client.generate(PromptIds((40, 41, 42)), sampling=GREEDY).ids
    )


def test_a_message_can_be_left_open(client: Client) -> None:
    opened = Chat((ChatMessage("user", "hi"), ChatMessage("assistant", "Well")), final_message_open=True)
    assert (
        client.generate(opened, sampling=GREEDY).ids
        == client.generate("[user]hi[end][assistant]Well", sampling=GREEDY).ids
    )


def test_a_seed_makes_sampling_repeatable_and_is_reported(client: Client) -> None:
    first = client.generate("hello", sampling=SamplingParams(max_tokens=16))
    again = client.generate("hello", sampling=SamplingParams(max_tokens=16, seed=first.seed))
    assert again.tokens == first.tokens


def test_steering_is_a_spec_a_rule_or_several(client: Client) -> None:
    rule = SteeringRule("calm", strength=2.0, selector=Selector.steps(0, 1))
    answers = [
        client.generate("hello", sampling=GREEDY, steering=steering, steering_trace=True)
        for steering in (rule, [rule], SteeringSpec((rule,)))
    ]
    for answer in answers:
        assert answer.tokens == answers[0].tokens
        assert [act.step for act in answer.acts] == [0, 1]
        assert answer.applied_steering is not None
        assert answer.applied_steering.rules[0].vector.startswith("vectors/calm@")
    assert answers[0].tokens != client.generate("hello", sampling=GREEDY).tokens


def test_what_was_applied_can_be_asked_for_again(client: Client) -> None:
    first = client.generate("hello", sampling=GREEDY, steering=SteeringRule("calm", layers=(1,)))
    again = client.generate("hello", sampling=GREEDY, steering=first.applied_steering)
    assert again.tokens == first.tokens
    assert again.applied_steering == first.applied_steering


def test_a_stream_adds_up_to_its_completion(client: Client) -> None:
    rule = SteeringRule("calm", selector=Selector.step_window(2, 6))
    stream = client.stream("hello", sampling=GREEDY, steering=rule, steering_trace=True)
    deltas = list(stream)
    completion = stream.completion
    assert "".join(delta.text for delta in deltas) == completion.text
    assert tuple(token for delta in deltas for token in delta.tokens) == completion.tokens
    assert tuple(act for delta in deltas for act in delta.acts) == completion.acts
    assert [act.step for act in completion.acts] == [2, 3, 4, 5]


def test_a_stream_that_is_closed_frees_its_row(client: Client, live: LiveServer) -> None:
    with client.stream("hello", sampling=LONG) as stream:
        next(stream)
        assert live.stats().active_requests == 1
    live.wait_idle()
    assert list(stream) == []
    with pytest.raises(InternalError, match="not come to its end"):
        _ = stream.completion


def test_a_timeout_ends_the_call_and_frees_its_row(client: Client, live: LiveServer) -> None:
    with pytest.raises(DeadlineExceededError):
        client.generate("hello", sampling=LONG, timeout=0.3)
    with pytest.raises(DeadlineExceededError):
        list(client.stream("hello", sampling=LONG, timeout=0.3))
    live.wait_idle()


def test_everything_wrong_with_a_request_is_told_before_it_is_sent(client: Client, live: LiveServer) -> None:
    before = live.stats().generated_tokens
    with pytest.raises(InvalidArgumentError) as caught:
        client.generate(
            "",
            sampling=SamplingParams(temperature=-1, top_p=0, stop=("",)),
            steering=SteeringRule("Calm", strength=float("inf")),
        )
    assert isinstance(caught.value, InvalidRequestError)
    assert [violation.field for violation in caught.value.violations] == [
        "text",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.stop_sequences[0]",
        "steering.rules[0].strength",
        "steering.rules[0].vector",
    ]
    assert live.stats().generated_tokens == before


@pytest.mark.parametrize(
    "sampling", [SamplingParams(top_k=2**31), SamplingParams(max_tokens=2**40), SamplingParams(seed=2**63)]
)
def test_numbers_that_do_not_fit_are_refused(client: Client, sampling: SamplingParams) -> None:
    with pytest.raises(InvalidArgumentError):
        client.generate("hello", sampling=sampling)


def test_a_text_that_is_no_unicode_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgumentError):
        client.generate("\ud800")


@pytest.mark.parametrize(
    "prompt", [b"bytes", {"role": "user", "content": "x"}, [1, "a"], [None], [{"role": "u"}]]
)
def test_what_is_no_prompt_is_a_type_error(client: Client, prompt: object) -> None:
    with pytest.raises(TypeError, match="a prompt is"):
        client.generate(prompt)  # type: ignore[arg-type]


def test_everything_that_only_the_server_knows_is_told_at_once(client: Client) -> None:
    rules = [SteeringRule("calm", layers=(7,)), SteeringRule("absent")]
    with pytest.raises(InvalidArgumentError) as caught:
        client.generate("hello", sampling=GREEDY, steering=rules, request_id="q")
    error = caught.value
    assert {violation.field for violation in error.violations} == {
        "steering.rules[0].layers[0]",
        "steering.rules[1].vector",
    }
    assert (error.reason, error.request_id) == ("INVALID_REQUEST", "q")
    assert {violation.kind.name for violation in error.violations} == {"INVALID", "NOT_FOUND"}


def test_a_stream_raises_when_it_is_read(client: Client) -> None:
    stream = client.stream("hello", steering=SteeringRule("absent"))
    with pytest.raises(NotFoundError):
        next(stream)


def test_what_does_not_apply_is_a_failed_precondition(client: Client) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        client.generate("hello", steering=SteeringRule("calm", layers=(2,)))
    assert caught.value.violations[0].field == "steering.rules[0].layers[0]"


def test_vectors_are_listed_over_all_pages_and_loaded_in_every_way(
    model_folder: Path, tmp_path: Path
) -> None:
    with LiveServer(model_folder, vectors=tmp_path) as server, Client(server.address) as client:
        assert client.list_vectors() == []
        loaded = server.model.loaded
        path = save_random_vector(tmp_path, loaded, "one", [0])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        on_server = client.load_vector("one", path_on_server="one.safetensors", sha256=digest)
        assert (on_server.name, on_server.sha256) == ("vectors/one", digest)
        assert client.load_vector("vectors/two", file=path).sha256 == digest
        assert client.load_vector("three", file=path.read_bytes()).sha256 == digest
        for number in range(60):
            server.model.vectors.load(f"many-{number:02}", path)
        names = [info.name for info in client.list_vectors()]
        assert len(names) == 63 > limits.DEFAULT_PAGE_SIZE
        assert names == sorted(set(names))
        other = save_random_vector(tmp_path, loaded, "other", [1], seed=9)
        with pytest.raises(AlreadyExistsError):
            client.load_vector("one", file=other)
        with pytest.raises(NotFoundError):
            client.load_vector("new", path_on_server="missing.safetensors")
        with pytest.raises(InvalidArgumentError):
            client.load_vector("new", path_on_server="../x.safetensors")


def test_versions_are_replaced_pinned_and_unloaded(model_folder: Path, tmp_path: Path) -> None:
    with LiveServer(model_folder) as server, Client(server.address) as client:
        files = [
            save_random_vector(tmp_path, server.model.loaded, f"v{seed}", [0], seed=seed) for seed in (1, 2)
        ]
        old = client.load_vector("calm", file=files[0])
        assert client.get_vector("vectors/calm") == old
        new = client.load_vector("calm", file=files[1], replace=True)
        assert client.list_vectors() == [new]
        assert client.list_vectors(all_versions=True) == [new, client.get_vector(old.pinned_name)]
        completion = client.generate("hello", sampling=GREEDY, steering=SteeringRule(old.pinned_name))
        assert completion.applied_steering is not None
        assert completion.applied_steering.rules[0].vector == old.pinned_name
        assert client.unload_vector("calm") == new
        with pytest.raises(NotFoundError):
            client.get_vector("calm")
        client.unload_vector(old.pinned_name)
        assert client.list_vectors(all_versions=True) == []


def test_texts_become_ids_and_ids_become_texts(client: Client, live: LiveServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for prompt in ("hello", PromptText("hello"), messages, Chat((ChatMessage("user", "hi"),))):
        ids = client.tokenize(prompt)
        assert client.generate(ids, sampling=GREEDY).ids == client.generate(prompt, sampling=GREEDY).ids
    assert client.detokenize(client.tokenize("hëllo")) == "hëllo"
    end = live.model.loaded.tokenizer.eos_token_id
    assert client.detokenize([end], skip_special_tokens=True) == ""
    with pytest.raises(TypeError, match="token ids are no text"):
        client.tokenize([1, 2])
    with pytest.raises(InvalidArgumentError, match="at most"):
        client.tokenize("a" * (limits.MAX_TOKENIZED_CHARACTERS + 1))
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        client.tokenize("\ud800")
    for ids in ([-1], [2**40], [258]):  # the last is known to be wrong to the server alone
        with pytest.raises(InvalidArgumentError, match=r"ids\[0\]"):
            client.detokenize(ids)


def test_the_server_tells_how_it_is(client: Client, live: LiveServer) -> None:
    stats = client.server_stats()
    assert stats.serving
    assert stats.started + timedelta(seconds=stats.uptime_seconds) <= datetime.now(UTC)
    assert (stats.vectors, stats.unfinished_limit) == (2, live.config.max_queued)


def test_one_source_of_a_vector_is_needed(client: Client) -> None:
    with pytest.raises(TypeError, match="exactly one"):
        client.load_vector("new")
    with pytest.raises(TypeError, match="exactly one"):
        client.load_vector("new", file=b"", path_on_server="x")


def test_a_file_that_is_neither_a_path_nor_bytes_is_none(client: Client) -> None:
    with pytest.raises(
        TypeError, match=r"file is a Path of this machine, or bytes; got str 'calm.safetensors'"
    ):
        client.load_vector("calm", file="calm.safetensors")  # type: ignore[arg-type]


def test_a_mapping_is_no_logit_bias(client: Client) -> None:
    with pytest.raises(TypeError, match="logit_bias is made of pairs"):
        client.generate("hello", sampling=SamplingParams(logit_bias={5: 1.0}))  # type: ignore[arg-type]


def test_a_file_above_the_limit_is_not_sent(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="at most"):
        client.load_vector("new", file=bytes(limits.MAX_VECTOR_FILE_BYTES + 1))


def test_a_full_server_says_when_to_try_again(model_folder: Path) -> None:
    with LiveServer(model_folder, max_queued=1) as server, Client(server.address) as client:
        with client.stream("hello", sampling=LONG) as stream:
            next(stream)
            with pytest.raises(ResourceExhaustedError) as caught:
                client.generate("hello", sampling=GREEDY)
            assert caught.value.retry_after == 1.0
        server.wait_idle()


def test_a_stopping_server_is_unavailable(model_folder: Path) -> None:
    with LiveServer(model_folder, grace=60) as server, Client(server.address) as client:
        stream = client.stream("hello", sampling=LONG)
        next(stream)
        server.begin_stop()
        reasons: list[str] = []

        def refuses() -> bool:
            try:
                client.model()
            except UnavailableError as error:
                reasons.append(error.reason)
            return bool(reasons)

        wait_until(refuses)
        assert reasons == ["DRAINING"]
        stream.close()


def test_no_server_is_a_failed_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with Client(address) as client:
            with pytest.raises(ConnectionFailedError):
                client.model(timeout=10)
            with pytest.raises(ConnectionFailedError, match=f"no server answered at {address} within 0.3 s"):
                client.wait_ready(timeout=0.3)


def test_a_client_waits_for_a_server_that_comes_up_later(model_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionFailedError):
            client.wait_ready(timeout=0.5)
        with LiveServer(model_folder, port=port):
            assert client.wait_ready(timeout=30).facts.name == "models/tiny"


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_a_timeout_that_never_passes_waits_without_end(client: Client, timeout: float) -> None:
    assert client.generate("hello", sampling=GREEDY, timeout=timeout).tokens
    assert list(client.stream("hello", sampling=GREEDY, timeout=timeout))
