"""What is refused before a model is shared by several processes, and why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.messages import PlainForward
from steering_engine.engine.stability import SHARED, unstable_reason
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.errors import EngineStoppedError, ModelError
from steering_engine.loading import check_source, load_model
from steering_engine.model import SteeredModel
from steering_engine.sharding import check_processes, plan_fault, splits_key_heads
from tests.support.models import save_tiny_model, tiny_model


def refusal(folder: Path, processes: int, device: str = "cpu") -> str:
    with pytest.raises(ModelError) as caught:
        SteeredModel.load(str(folder), device=device, tensor_parallel=processes)
    return str(caught.value)


def fault(family: str, processes: int) -> str | None:
    model = tiny_model(family)
    return plan_fault(model.tp_plan or {}, model.config, processes)


@pytest.mark.parametrize(
    ("family", "processes"),
    [
        ("llama", 2),
        ("qwen3", 2),
        ("mistral", 2),
        ("gemma2", 2),
        ("gpt_neox", 4),
        ("mixtral", 2),
        ("olmo2", 3),  # its heads are gathered before they are used, so that they need not be divided
        ("phi3", 3),
    ],
)
def test_a_plan_that_divides_blocks_and_heads_is_good(family: str, processes: int) -> None:
    assert fault(family, processes) is None


@pytest.mark.parametrize(
    ("family", "processes", "reason"),
    [
        ("gpt2", 2, "transformers has no tensor parallel plan for it"),
        ("gpt_oss", 2, "transformers' plan for it divides no decoder block (lm_head only)"),
        ("llama", 3, "its 4 attention heads can't be divided by 3"),
        ("llama", 4, "its 2 key-value heads can't be divided by 4"),
        ("gpt_neox", 3, "its 4 attention heads can't be divided by 3"),
    ],
)
def test_a_plan_that_can_not_be_used_is_refused_with_the_reason(
    family: str, processes: int, reason: str
) -> None:
    assert fault(family, processes) == reason


def test_a_plan_that_divides_the_rows_of_the_residual_stream_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny", "llama")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    plan = {**AutoConfig.from_pretrained(folder).base_model_tp_plan, "layers.*.mlp": "sequence_parallel"}
    (folder / "config.json").write_text(json.dumps({**config, "base_model_tp_plan": plan}))
    with pytest.raises(
        ModelError, match=r"rows of the residual stream \(model\.layers\.\*\.mlp: sequence_par"
    ):
        check_source(str(folder), "auto", "auto", 2)


@pytest.mark.parametrize(
    ("family", "split"),
    [("llama", True), ("gpt_neox", True), ("mixtral", True), ("olmo2", False), ("phi3", False)],
)
def test_key_heads_are_split_where_the_plan_leaves_them_so(family: str, *, split: bool) -> None:
    assert splits_key_heads(tiny_model(family).tp_plan) is split


def test_the_model_is_named_in_the_refusal_and_nothing_is_started(tmp_path: Path) -> None:
    message = refusal(save_tiny_model(tmp_path / "tiny", "gpt2"), 2)
    assert message == (
        "GPT2LMHeadModel can't be shared by 2 processes: transformers has no tensor parallel plan for it"
    )
    assert not torch.distributed.is_initialized()


def test_a_missing_folder_is_refused_as_ever(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none", 2)


def test_less_than_one_process_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, 0) == "tensor_parallel is 0; expected at least 1"


def test_more_processes_than_cuda_devices_are_refused() -> None:
    found = torch.cuda.device_count()
    with pytest.raises(ModelError, match=f"over {found + 2} needs as many CUDA devices; found {found}"):
        check_processes(torch.device("cuda"), found + 2)


def test_one_cuda_device_can_not_be_asked_for() -> None:
    with pytest.raises(ModelError, match=r"cuda:1 was asked for, .* choose them by CUDA_VISIBLE_DEVICES"):
        check_processes(torch.device("cuda:1"), 2)


def test_a_process_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ModelError, match="start one without torchrun"):
        check_processes(torch.device("cpu"), 2)


def test_a_shared_model_promises_no_determinism(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny_model(tmp_path / "tiny")), "cpu", "float32")
    assert unstable_reason(dataclasses.replace(loaded, processes=2)) == SHARED
    with pytest.raises(ModelError, match=f"can't be run deterministically: {SHARED}"):
        SteeredModel.load(loaded.source, limits=EngineLimits(deterministic=True), tensor_parallel=2)


def lose_one(followers: Followers) -> None:
    with followers.guard():
        followers._members[1].kill()
        raise RuntimeError("what the lost process broke")


def test_a_follower_that_ends_while_the_model_is_loaded_is_the_reason_that_is_told() -> None:
    followers = Followers(3)
    with pytest.raises(ModelError, match=r"process 2 of 3 that share the model ended \(signal 9\)"):
        lose_one(followers)
    assert all(member.poll() is not None for member in followers._members)
    with pytest.raises(EngineStoppedError, match="process 2 of 3"):
        followers.check()
    with pytest.raises(EngineStoppedError, match="process 2 of 3"):
        followers.send(PlainForward([1]))


def test_a_follower_that_has_heard_nothing_ends_when_its_driver_closes() -> None:
    followers = Followers(2)
    followers.close()
    (member,) = followers._members
    assert member.wait(60) == 0
    followers.close()
