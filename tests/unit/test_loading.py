"""Loading: a model that can't be had or can't be run is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from steering_engine.errors import ModelError
from steering_engine.loading import config_digest, load_model, weights_digest
from steering_engine.model import EngineLimits, SteeredModel
from tests.support import models
from tests.support.models import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("loading") / "tiny")


def edit_config(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def drop(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("config.json"), r"no model folder \(it has no config\.json\)"),
        (drop("model.safetensors"), r"can't be loaded: .*model\.safetensors"),
        (cut_weights, "can't be loaded: .*(incomplete|header|deserializ)"),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be loaded: .*config.json"),
        (edit_config(model_type="nonsense"), "can't be loaded: .*nonsense"),
        (edit_config(model_type="vit"), "can't be loaded: .*ViTConfig"),
        (edit_config(num_hidden_layers="three"), "can't be loaded: .*'num_hidden_layers' expected int, got str"),
        (edit_config(hidden_size=64), "can't be loaded: "),
        (drop("tokenizer.json", "tokenizer_config.json"), "its tokenizer knows no tokens; is tokenizer.json there"),
    ],
    ids=[
        "no config", "no weights", "cut weights", "broken config", "unknown type", "no language model",
        "wrong field", "other shapes", "no tokenizer",
    ],
)  # fmt: skip
def test_a_broken_folder(spoil: Callable[[Path], None], message: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    spoil(broken)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(broken), "cpu")
    assert str(caught.value).startswith(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "./absent", "~/absent", "absent", "a/b/c"])
def test_a_source_that_is_neither_a_folder_nor_an_id(source: str) -> None:
    with pytest.raises(ModelError, match=r"no such folder \(and not an id of the form owner/name\)"):
        load_model(source)


def test_a_source_that_can_not_be_looked_at_is_refused() -> None:
    with pytest.raises(ModelError, match=r"can't be looked at: File name too long"):
        load_model("a" * 5000)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", ""])
def test_an_unknown_device(device: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=rf"unknown device '{device}'; expected auto, cpu, cuda or cuda:N"):
        load_model(str(folder), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there(device: str, folder: Path) -> None:
    with pytest.raises(
        ModelError, match=f"device '{device}' was asked for, but this machine has no CUDA device"
    ):
        load_model(str(folder), device)


def test_an_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int8'; expected auto, float32, bfloat16, float16"):
        load_model(str(folder), "cpu", "int8")


@pytest.mark.parametrize(
    ("saved", "asked", "expected"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.float32),  # half precision is slow and lossy on a CPU
        ("float16", "float16", torch.float16),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_the_dtype_is_the_checkpoints_or_the_one_asked_for(
    saved: str, asked: str, expected: torch.dtype, tmp_path: Path
) -> None:
    model = models.tiny_model("qwen3").to(getattr(torch, saved))
    model.save_pretrained(tmp_path / "tiny")
    models.byte_tokenizer().save_pretrained(tmp_path / "tiny")
    assert load_model(str(tmp_path / "tiny"), "cpu", asked).model.dtype is expected


def test_what_is_loaded_is_described(folder: Path) -> None:
    loaded = load_model(str(folder), "cpu")
    assert (loaded.hidden_size, loaded.block_count, loaded.vocab_size, loaded.context_tokens) == (
        32,
        3,
        258,
        256,
    )
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_digests_of_a_copy_are_those_of_the_original(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    original, copy = load_model(str(folder), "cpu"), load_model(str(tmp_path / "copy"), "cpu", "bfloat16")
    assert copy.config_digest == original.config_digest
    assert copy.tokenizer_digest == original.tokenizer_digest


def test_another_architecture_has_another_digest(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=2)
    assert config_digest(AutoConfig.from_pretrained(folder)) != config_digest(
        AutoConfig.from_pretrained(other)
    )


REFUSED = {
    "falcon": ("Falcon", {**models._COMMON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "stablelm": ("StableLm", {**models._COMMON, "num_key_value_heads": 2}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "eos_token_id": 1}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 1}),
}


@pytest.mark.parametrize("family", REFUSED)
def test_an_architecture_whose_batches_would_be_wrong_is_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.FAMILIES, family, REFUSED[family])
    folder = save_tiny_model(tmp_path / family, family)
    with pytest.raises(ModelError, match=rf"{REFUSED[family][0]}ForCausalLM can't be run in batches: "):
        SteeredModel.load(str(folder), device="cpu", dtype="float32", limits=EngineLimits(cache_tokens=256))


LATENT = {
    **models._COMMON,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
}


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("Mamba", REFUSED["mamba"][1], "it has layers of linear_attention; only those of full or sliding"),
        (
            "Lfm2",
            {**models._COMMON, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]},
            "it has layers of conv; only those of full or sliding",
        ),
        ("DeepseekV3", LATENT, r"it has latent attention \(kv_lora_rank\)"),
        ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 3}, "its configuration names no attention heads"),
    ],
)
def test_layers_that_the_cache_does_not_hold_are_refused_with_the_reason(
    family: str, overrides: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.FAMILIES, family, (family, overrides))
    folder = save_tiny_model(tmp_path / family, family)
    with pytest.raises(ModelError, match=rf"^{family}ForCausalLM can't be run in batches: {reason}"):
        SteeredModel.load(str(folder), device="cpu", limits=EngineLimits(cache_tokens=256))


def test_what_is_more_than_rounding_is_refused_in_reduced_precision_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.FAMILIES, "bloom", REFUSED["bloom"])
    folder = save_tiny_model(tmp_path / "model", "bloom", initializer_range=0.06)
    with pytest.raises(ModelError, match="its logits differ from an ordinary forward's"):
        SteeredModel.load(str(folder), device="cpu", dtype="bfloat16", limits=EngineLimits(cache_tokens=256))


def test_a_cache_that_does_not_fit_into_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="can't be run in batches: "):
        SteeredModel.load(str(folder), device="cpu", limits=EngineLimits(cache_tokens=10**12))


def test_a_model_whose_blocks_cannot_be_found_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering_engine.blocks._alike", lambda _: False)
    with pytest.raises(ModelError, match="this architecture can't be steered"):
        SteeredModel.load(str(folder), device="cpu", limits=EngineLimits(cache_tokens=256))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 weights, the first model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model(str(folder))


def test_rotary_embeddings_that_depend_on_the_batch_bound_the_context(tmp_path: Path) -> None:
    # Beyond the original length the longest sequence of a forward would change the tokens of all others.
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 24,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    folder = save_tiny_model(
        tmp_path / "model", "phi3", rope_parameters=rope, original_max_position_embeddings=24
    )
    assert load_model(str(folder)).context_tokens == 24


def test_other_weights_have_another_digest_and_a_copy_has_the_same(folder: Path, tmp_path: Path) -> None:
    copy, tuned = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("copy", "tuned"))
    path = tuned / "model.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file(weights | {name: weights[name] + 0.01}, path, {"format": "pt"})

    digests = [weights_digest(load_model(str(place)).model) for place in (folder, copy, tuned)]

    assert digests[0] == digests[1] != digests[2]
