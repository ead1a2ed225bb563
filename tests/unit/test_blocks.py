"""Decoder blocks are found by structure, and steering stays with the thread that asked for it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from steering_engine.blocks import SteeringHooks, find_blocks
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
