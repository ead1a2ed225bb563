"""`pts inspect`: everything about a vector file in the terminal."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import save_vector
from steering_pts.inspection.facts import facts_of
from steering_pts.inspection.lens import final_norm, lens_scores, nearest_tokens
from steering_spec.limits import MAX_VECTOR_FILE_BYTES
from tests.support.models import save_tiny_model, tiny_model
from tests.support.pts import run_pts
from tests.support.vector_files import full_vector
from tests.support.vectors import random_vector, save_random_vector

NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gemma2": "model.norm",
    "olmo2": "model.norm",
    "qwen3_moe": "model.norm",
    "phi3": "model.norm",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(scope="module")
def file(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "calm.safetensors"
    save_vector(path, full_vector(tiny))
    return path


# --- logit lens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NORMS)
def test_the_final_norm_is_found_by_what_it_is_given(family: str) -> None:
    model = tiny_model(family)

    assert final_norm(model) is dict(model.named_modules())[NORMS[family]]


def test_of_an_rms_norm_the_lens_of_a_direction_is_that_of_a_state() -> None:
    model = tiny_model("llama")
    torch.manual_seed(1)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.1, 3)  # trained gains are far from 1
    direction = torch.randn(32)

    scores = lens_scores(model, final_norm(model), direction)

    state = direction / direction.pow(2).mean().sqrt() * model.model.norm.weight
    logits = (model.lm_head.weight @ state).double()
    expected = (logits - logits.mean()) / logits.std()
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        lens_scores(model, final_norm(model), 7 * direction), scores, atol=1e-4, rtol=1e-4
    )


def test_of_a_layer_norm_the_bias_says_nothing_about_a_direction() -> None:
    model = tiny_model("gpt2")
    torch.manual_seed(1)
    direction = torch.randn(32)
    before = lens_scores(model, final_norm(model), direction)
    with torch.no_grad():
        model.transformer.ln_f.bias.normal_(0, 100)

    after = lens_scores(model, final_norm(model), direction)

    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lens_scores(model, final_norm(model), -direction), -after)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_in_bfloat16_is_read_as_exactly_as_its_weights_are(family: str) -> None:
    """Its own forward would round the scores to 8 bits, and put tokens that differ in the third digit in any order."""
    model = tiny_model(family).to(torch.bfloat16)
    torch.manual_seed(1)
    direction = torch.randn(32)

    scores = lens_scores(model, final_norm(model), direction)

    wide = copy.deepcopy(model).float()
    torch.testing.assert_close(scores, lens_scores(wide, final_norm(wide), direction), atol=1e-5, rtol=1e-5)
    assert model.dtype == torch.bfloat16


def test_the_row_of_a_token_points_to_that_token(tiny: LoadedModel) -> None:
    rows = tiny.model.get_output_embeddings().weight.detach()

    found = nearest_tokens(tiny, {0: rows[80], 2: -rows[90]}, 3)

    assert found[0].raised[0].token_id == 80
    assert found[2].lowered[0].token_id == 90
    assert [len(found[0].raised), len(found[0].lowered)] == [3, 3]
    raised = [token.score for token in found[0].raised]
    assert raised == sorted(raised, reverse=True)
    assert found[0].raised[0].token == tiny.tokenizer.decode([80])


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_tensors(tiny: LoadedModel) -> None:
    vector = full_vector(tiny)

    facts = facts_of(vector)

    assert [(row.block, row.strength, row.relative) for row in facts.blocks] == [(0, 4.0, 4.0), (2, 6.0, 6.0)]
    expected = float(vector.directions[0].double() @ vector.directions[2].double())
    assert facts.cosines[0][1] == pytest.approx(expected, abs=1e-6)
    assert facts.cosines[0][0] == pytest.approx(1)
    first, second = facts.probes
    weight = vector.probes[0].weight.double()
    assert (first.block, first.auc, first.threshold, first.bias) == (0, 0.9, 0.7, 0.25)
    assert first.weight_norm == pytest.approx(float(weight.norm()))
    assert first.cosine_to_direction == pytest.approx(
        float(torch.cosine_similarity(weight, vector.directions[0].double(), dim=0)), abs=1e-6
    )
    assert (second.block, second.cosine_to_direction, second.threshold) == (1, None, None)
    assert [(one.block, one.count, one.min_cosine) for one in facts.centroids] == [(1, 2, None), (2, 3, 0.6)]
    assert facts.centroids[0].least_norm == pytest.approx(float(vector.centroids[1].norm(dim=1).min()))
    assert (facts.contexts, facts.shortest_context, facts.longest_context) == (3, 1, 3)


# --- the command ------------------------------------------------------------------------------------------------------


def test_everything_about_a_file_is_printed(file: Path, tiny: LoadedModel) -> None:
    ended = run_pts("inspect", str(file), "--model", tiny.source, "--contexts", "2")

    assert (ended.code, ended.err) == (0, "")
    for part in (
        "name                 calm",
        "directions, in residual units",
        "cosine between directions",
        "nearest tokens",
        "probes",
        "centroids",
        "3 contexts of 1 to 3 tokens; the shortest match is 1",
        "and 1 more (--contexts)",
    ):
        assert part in ended.out
    assert "note:" not in ended.out


def test_json_holds_the_same(file: Path, tiny: LoadedModel) -> None:
    ended = run_pts("inspect", str(file), "--model", tiny.source, "--json", "--tokens", "2")

    found = json.loads(ended.out)
    assert found["metadata"]["name"] == "calm"
    assert found["metadata"]["schema"] == "steering.vector/1"
    assert [row["block"] for row in found["blocks"]] == [0, 2]
    assert [len(row) for row in found["cosines"]] == [2, 2]
    assert {side: len(tokens) for side, tokens in found["nearest_tokens"]["2"].items()} == {
        "raised": 2,
        "lowered": 2,
    }
    assert found["context_texts"][0] == {"ids": [5, 6, 7], "text": tiny.tokenizer.decode([5, 6, 7])}
    assert found["notes"] == []


def test_a_file_whose_model_is_not_here_is_looked_at_without_it(file: Path) -> None:
    ended = run_pts("inspect", str(file))  # its model is called `tiny`, and there is no such folder

    assert ended.code == 0
    assert "note: tiny is not on this machine" in ended.out
    assert "nearest tokens (logit lens" not in ended.out
    assert "  ids 5 6 7" in ended.out
    assert json.loads(run_pts("inspect", str(file), "--no-model", "--json").out)["nearest_tokens"] is None


def test_a_file_finds_its_own_model(tiny: LoadedModel, tmp_path: Path) -> None:
    path = save_random_vector(tmp_path, tiny, "own", [1], model_id=tiny.source)

    found = json.loads(run_pts("inspect", str(path), "--json").out)

    assert set(found["nearest_tokens"]) == {"1"}


def test_a_large_file_stays_readable(tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_vector(path, random_vector(tiny, "wide", range(40), block_count=40))

    ended = run_pts("inspect", str(path), "--no-model")

    assert ended.code == 0
    assert "cosine to the next direction (all: --json)" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 300


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_another_model_is_told(file: Path, family: str, tmp_path: Path) -> None:
    size: dict[str, Any] = {"hidden_size": 64} if family == "llama" else {"intermediate_size": 96}
    other = save_tiny_model(tmp_path / "other", family, **size)

    ended = run_pts("inspect", str(file), "--model", str(other))

    if family == "llama":
        assert ended.error() == (
            f"{other} has 3 blocks of width 64; the vector is for 3 blocks of width 32 (tiny)"
        )
    else:
        assert ended.code == 0
        assert "note: the model's configuration is not that of the vector's model" in ended.out


def test_what_is_no_vector_file_is_one_clear_error(file: Path, tmp_path: Path) -> None:
    assert (
        run_pts("inspect", str(tmp_path / "none"))
        .error()
        .endswith("no such file; `pts vectors` writes vector files")
    )
    assert run_pts("inspect", str(file.parent)).error() == (
        f"{file.parent} is a folder; name one of its 1 vector files (*.safetensors)"
    )
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:-4])
    assert run_pts("inspect", str(broken)).error().startswith(f"{broken}: not a sound safetensors file")
    assert "no model folder" in run_pts("inspect", str(file), "--model", str(tmp_path)).error()


@pytest.mark.parametrize("name", ["m" * 5000, "m/" * 2500, "a\x00b"])
def test_a_model_may_have_a_name_that_no_file_can_have(tiny: LoadedModel, tmp_path: Path, name: str) -> None:
    path = save_random_vector(tmp_path, tiny, "named", [1], model_id=name)

    (note,) = json.loads(run_pts("inspect", str(path), "--json").out)["notes"]

    assert f"{name[:79]}… is not on this machine" in note or f"{name} is not on this machine" in note
    assert len(note) < 250


def test_json_has_null_where_a_number_is_not_finite(tiny: LoadedModel, tmp_path: Path) -> None:
    numbers = {"calibrated_strength": {1: 1e300}, "residual_norm": {1: 1e-300}}
    path = save_random_vector(tmp_path, tiny, "far", [1], **numbers)

    found = json.loads(run_pts("inspect", str(path), "--no-model", "--json").out)

    assert found["blocks"][0] | {"reliability": 0} == {
        "block": 1,
        "strength": 1e300,
        "residual_norm": 1e-300,
        "relative": None,
        "reliability": 0,
    }


def test_only_files_of_a_vectors_size_are_read(tmp_path: Path) -> None:
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no place on the disk

    assert run_pts("inspect", "/dev/zero").error() == "/dev/zero: not a regular file"
    assert run_pts("inspect", str(large)).error() == (
        f"{large}: {1 << 40} bytes; at most {MAX_VECTOR_FILE_BYTES} are allowed"
    )


def test_recorded_states_are_told_from_vectors(tmp_path: Path) -> None:
    path = tmp_path / "activations.safetensors"
    save_file({"resid.0.prefix": torch.zeros(2, 4)}, path, metadata={"schema": "steering.activations/1"})

    assert run_pts("inspect", str(path)).error() == (
        f"{path} holds recorded states (steering.activations/1), no vectors; `pts vectors RUN` makes vectors of them"
    )
