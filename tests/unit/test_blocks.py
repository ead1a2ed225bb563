"""Decoder blocks are found by structure, and steering stays with the thread that asked for it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from steering_engine.blocks import SteeringHooks, check_residual_stream, find_blocks
from steering_engine.errors import ModelError
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.forward import upload
from steering_engine.steering.table import DirectionTable
from tests.support.models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_of_every_family_are_found(family: str) -> None:
    model = tiny_model(family)
    blocks = find_blocks(model)
    assert len(blocks) == 3
    assert all(isinstance(block, type(blocks[0])) for block in blocks)


def test_experts_inside_a_block_are_not_taken_for_blocks() -> None:
    model = tiny_model("qwen3_moe", num_experts=3)
    assert find_blocks(model) is model.model.layers


def test_a_model_with_two_lists_of_blocks_is_refused() -> None:
    model = tiny_model("qwen3")
    model.twin = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(ModelError, match=r"expected one list of 3 decoder blocks, found model\.layers, twin"):
        find_blocks(model)


def test_a_model_without_blocks_is_refused() -> None:
    model = tiny_model("qwen3")
    model.config.num_hidden_layers = 7
    with pytest.raises(
        ModelError, match="Qwen3ForCausalLM: expected one list of 7 decoder blocks, found none"
    ):
        find_blocks(model)


def test_a_plan_belongs_to_the_thread_that_set_it() -> None:
    model = tiny_model("qwen3")
    hooks = SteeringHooks(find_blocks(model), DirectionTable(3, 32, torch.device("cpu")))
    hooks.plan = upload(BatchDecisions().plan(), torch.device("cpu"))
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(hooks.plan))
    thread.start()
    thread.join()
    assert seen == [None]
    assert hooks.plan is not None


class TwoStreams(nn.Module):
    """A model whose blocks pass two residual streams on."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(2))

    def forward(self, ids: list[int]) -> torch.Tensor:
        streams = torch.zeros(1, len(ids), 2, self.config.hidden_size)
        for block in self.blocks:
            streams = block(streams)
        return streams


def test_a_block_that_gives_no_residual_stream_is_told_by_its_number() -> None:
    model = TwoStreams(tiny_model("qwen3").config)
    with pytest.raises(
        ModelError,
        match=r"TwoStreams: block 0 gives shape \[1, 3, 2, 32\], expected a residual stream \[1, 3, 32\]",
    ):
        check_residual_stream(model, model.blocks, model)


def test_the_blocks_of_a_decoder_give_its_residual_stream() -> None:
    model = tiny_model("gpt2")

    def forward(ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = model(torch.tensor([ids])).logits
        return logits

    check_residual_stream(model, find_blocks(model), forward)
