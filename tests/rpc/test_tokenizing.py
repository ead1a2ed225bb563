"""Tokenize, Detokenize and GetServerStats through a real channel."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import transformers

from steering.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from steering_spec import PromptText, limits
from tests.support.models import save_tiny_model
from tests.support.server import LiveServer
from tests.support.statuses import failure

Stub = model_pb2_grpc.ModelServiceStub


@pytest.fixture
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def chat(*contents: str, **fields: Any) -> generation_pb2.Chat:
    messages = [generation_pb2.Message(role="user", content=content) for content in contents]
    return generation_pb2.Chat(messages=messages, **fields)


def tokenized(stub: Stub, **fields: Any) -> list[int]:
    return list(stub.Tokenize(model_pb2.TokenizeRequest(**fields)).ids)


def text_of(stub: Stub, ids: list[int], **fields: Any) -> str:
    return stub.Detokenize(model_pb2.DetokenizeRequest(ids=ids, **fields)).text


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, list[str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    told = failure(caught.value)
    return told.code, told.fields


@pytest.mark.parametrize("prompt", [{"text": "hëllo 🙂"}, {"chat": chat("hi")}], ids=["text", "chat"])
def test_the_ids_are_those_that_generation_uses(
    channel: grpc.Channel, stub: Stub, prompt: dict[str, Any]
) -> None:
    ids = tokenized(stub, **prompt)
    generation = generation_pb2_grpc.GenerationServiceStub(channel)
    answers = []
    for form in (prompt, {"tokens": generation_pb2.TokenIds(ids=ids)}):
        sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=8)
        spec = generation_pb2.GenerationSpec(**form, sampling=sampling)
        (result,) = generation.Generate(generation_pb2.GenerateRequest(spec=spec)).results
        answers.append((result.usage.prompt_token_count, list(result.tokens)))
    assert answers[0] == answers[1]
    assert answers[0][0] == len(ids)


def test_a_text_comes_back_from_its_ids(stub: Stub) -> None:
    for text in ("", "hello", "  two  spaces ,\n\ttabs ", "Ünïcödé 🙂"):
        assert text_of(stub, tokenized(stub, text=text)) == text


def test_special_tokens_are_written_out_unless_they_are_not_wanted(stub: Stub, live: LiveServer) -> None:
    ids = tokenized(stub, chat=chat("hi"))
    assert text_of(stub, ids) == "[user]hi[end][assistant]"
    tokenizer = live.model.loaded.tokenizer
    ended = [*tokenized(stub, text="hi"), tokenizer.eos_token_id]
    assert text_of(stub, ended) == f"hi{tokenizer.eos_token}"
    assert text_of(stub, ended, special_tokens_skipped=True) == "hi"


def test_half_a_character_is_replaced(stub: Stub) -> None:
    first = tokenized(stub, text="ë")[0]
    assert text_of(stub, [first]) == "\ufffd"


def test_a_text_longer_than_the_context_is_tokenized_up_to_the_limit(stub: Stub, live: LiveServer) -> None:
    text = "The quick brown fox. " * 1000
    assert tokenized(stub, text=text) == list(live.model.prompt_ids(PromptText(text)))
    assert len(tokenized(stub, text=text)) > live.model.info.facts.max_context_tokens
    most = limits.MAX_TOKENIZED_CHARACTERS
    for prompt in ({"text": "a" * (most + 1)}, {"chat": chat("a" * most, "a")}):
        code, fields = refused(lambda prompt=prompt: tokenized(stub, **prompt))
        assert (code, fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            ["text" if "text" in prompt else "chat.messages"],
        )


def test_all_that_is_wrong_is_told_at_once(stub: Stub, live: LiveServer) -> None:
    vocab_size = live.model.info.facts.vocab_size
    assert refused(lambda: text_of(stub, [0, -1, vocab_size], model="models/tiny")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["ids[1]", "ids[2]"],
    )
    bad = generation_pb2.Chat(messages=[generation_pb2.Message(role="nobody", content="hi")])
    bad.final_message_open = True
    assert refused(lambda: tokenized(stub, chat=bad)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["chat.messages[0].role", "chat.final_message_open"],
    )
    assert refused(lambda: tokenized(stub)) == (grpc.StatusCode.INVALID_ARGUMENT, ["prompt"])
    assert refused(lambda: text_of(stub, [0] * (limits.MAX_DETOKENIZED_IDS + 1))) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["ids"],
    )


def test_another_model_is_not_found(stub: Stub) -> None:
    for call in (
        lambda: tokenized(stub, text="hi", model="models/other"),
        lambda: text_of(stub, [1], model="models/other"),
    ):
        assert refused(call) == (grpc.StatusCode.NOT_FOUND, ["model"])


def test_chat_without_a_template_does_not_apply(tmp_path: Path) -> None:
    with LiveServer(save_tiny_model(tmp_path / "m", chat=False)) as server, server.channel() as channel:
        told = refused(lambda: tokenized(Stub(channel), chat=chat("hi")))
    assert told == (grpc.StatusCode.FAILED_PRECONDITION, ["chat"])


def test_the_stats_are_those_of_the_running_server(channel: grpc.Channel, live: LiveServer) -> None:
    stub = Stub(channel)
    before = stub.GetServerStats(model_pb2.GetServerStatsRequest()).stats
    assert before.versions["torch"] == torch.__version__
    assert before.versions["transformers"] == transformers.__version__
    assert {"pivotal-steering", "python", "grpcio"} <= set(before.versions)
    assert (before.serving, before.device) == (True, "cpu")
    assert 0 < before.start_time.ToSeconds() <= time.time()
    assert (before.running_completion_count, before.unfinished_completion_count) == (0, 0)
    assert before.unfinished_completion_limit == live.config.max_queued
    assert before.cache_page_count * before.cache_page_token_count == live.model.limits.cache_tokens
    assert before.vector_count == 2  # calm and pivot, with three rows, of which block 0 has one
    assert (before.used_vector_row_count, before.vector_row_count) == (1, 16_383)
    assert 0 < before.vector_memory_bytes < before.vector_memory_limit_bytes == 1 << 30

    sampling = generation_pb2.SamplingParams(temperature=0, max_token_count=8000, completion_count=2)
    spec = generation_pb2.GenerationSpec(text="hello" * 10, sampling=sampling)
    generation = generation_pb2_grpc.GenerationServiceStub(channel)
    call = generation.StreamGenerate(generation_pb2.StreamGenerateRequest(spec=spec))
    indices = set()
    while len(indices) < 2:
        indices.add(next(call).delta.completion_index)
    during = stub.GetServerStats(model_pb2.GetServerStatsRequest()).stats
    assert (during.running_completion_count, during.unfinished_completion_count) == (2, 2)
    assert during.used_cache_page_count > before.used_cache_page_count
    assert during.generated_token_count > before.generated_token_count
    assert during.uptime_duration.ToNanoseconds() > before.uptime_duration.ToNanoseconds()
    call.cancel()
    live.wait_idle()


def test_a_chat_above_the_models_own_length_warns_nobody(
    stub: Stub, live: LiveServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = live.model.loaded.tokenizer
    monkeypatch.setattr(tokenizer, "model_max_length", 4)
    tokenizer.deprecation_warnings.clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenized(stub, chat=chat("more than four tokens"))
    assert "sequence length" not in caplog.text
