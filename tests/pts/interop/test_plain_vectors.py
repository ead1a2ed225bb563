"""`pts import --from safetensors`: plain files of one tensor for each layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from steering_engine.blocks import find_blocks
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_pts.errors import InteropError
from steering_pts.interop.model_vectors import residual_norms, vector_name
from steering_pts.interop.plain_vectors import HOOK_POINTS, read_plain_vectors
from tests.support.pts import run_pts
from tests.support.vectors import save_random_vector

ONES = torch.ones(32)


@pytest.mark.parametrize("name", ["1", "layer_1", "model.layers.1", "blocks.1.hook_resid_post"])
def test_the_number_in_a_name_is_the_layer(tmp_path: Path, name: str) -> None:
    save_file({name: ONES}, tmp_path / "v.safetensors")

    assert list(read_plain_vectors(tmp_path / "v.safetensors", "resid_post")) == [1]
    assert list(read_plain_vectors(tmp_path / "v.safetensors", "resid_pre")) == [0]
    assert list(read_plain_vectors(tmp_path / "v.safetensors", "hidden_states")) == [0]


def test_layers_before_a_block_are_the_outputs_of_the_one_before(model: SteeredModel) -> None:
    """The numbering of `hidden_states`, and what goes into a block, are that of the library itself."""
    loaded = model.loaded
    seen = {}
    handle = find_blocks(loaded.model)[2].register_forward_hook(
        lambda _module, args, _output: seen.update(into=args[0])
    )
    with torch.no_grad():
        states = loaded.model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    handle.remove()
    after = {}
    handle = find_blocks(loaded.model)[1].register_forward_hook(
        lambda _module, _args, output: after.update(out=output)
    )
    with torch.no_grad():
        loaded.model(torch.tensor([[5, 6, 7]]))
    handle.remove()

    assert torch.equal(states[2], after["out"])
    assert torch.equal(seen["into"], after["out"])


def test_the_command_writes_a_vector_file_for_the_model(
    tmp_path: Path, ending_folder: Path, model: SteeredModel
) -> None:
    save_file({"layer.2": 3 * ONES[None].half()}, tmp_path / "Calm v2.safetensors")
    out = tmp_path / "calm.safetensors"

    ended = run_pts(
        *("import", str(tmp_path / "Calm v2.safetensors"), "--from", "safetensors", "--out", str(out)),
        *("--model", str(ending_folder), "--hook-point", "resid_pre", "--licence", "MIT"),
    )

    assert (ended.code, ended.err) == (0, "")
    vector = load_vector(out)
    assert (vector.metadata.name, vector.metadata.licence) == ("calm-v2", "MIT")
    assert vector.metadata.calibrated_strength[1] == pytest.approx(3 * 32**0.5)
    assert vector.metadata.tokenizer_digest == model.loaded.tokenizer_digest
    assert model.vectors.load("calm-v2", out).name == "vectors/calm-v2"


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    save_file(
        {
            "a": ONES.clone(),
            "layer_1": ONES.int(),
            "layer_2": torch.ones(2, 3),
            "layer_0": ONES.clone(),
            "x3": ONES,
            "y3": ONES + 1,
        },
        tmp_path / "v.safetensors",
    )

    with pytest.raises(InteropError) as caught:
        read_plain_vectors(tmp_path / "v.safetensors", "resid_pre")

    assert caught.value.problems == (
        "tensor 'a': its name must hold one number, its layer",
        "tensor 'layer_0': resid_pre of layer 0 is the embeddings, which no block gives out; leave it out",
        "tensor 'layer_1': dtype torch.int32; expected floating-point numbers",
        "tensor 'layer_2': shape [2, 3]; expected [hidden]",
        "tensor 'y3': it is for layer 3, like 'x3'",
    )


def test_vectors_of_another_width_or_block_are_refused(tmp_path: Path, ending_folder: Path) -> None:
    save_file({"0": torch.ones(5), "1": torch.zeros(32), "7": ONES}, tmp_path / "v.safetensors")

    ended = run_pts(
        *("import", str(tmp_path / "v.safetensors"), "--from", "safetensors", "--model", str(ending_folder)),
        *("--out", str(tmp_path / "out.safetensors")),
    )

    assert ended.code == 2
    for fault in (
        "block 0: shape [5]; the model's residual stream has width 32",
        "block 1: it is zero everywhere",
        "block 7: the model has blocks 0 to 2",
    ):
        assert fault in ended.err
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_a_vector_file_already_is_not_imported(tmp_path: Path, model: SteeredModel) -> None:
    path = save_random_vector(tmp_path, model.loaded, "calm", [0])

    with pytest.raises(InteropError, match="it is a steering vector already"):
        read_plain_vectors(path, "resid_post")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "pickle"], "unknown layout 'pickle'; expected codelion-pts"),
        (["--from", "safetensors"], "does not say which model it is for; name it with --model"),
        (
            ["--from", "safetensors", "--model", "demo", "--hook-point", "mlp"],
            "hook point 'mlp' is not known",
        ),
        (["--from", "gguf", "--model", "demo"], "there is no such file"),
    ],
)
def test_what_can_not_be_imported_is_said_in_one_line(
    tmp_path: Path, options: list[str], message: str
) -> None:
    ended = run_pts("import", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *options)

    assert message in ended.error()


def test_residual_norms_at_contexts_are_those_of_their_last_rows(model: SteeredModel) -> None:
    contexts = [(5, 6, 7), (8, 9)]
    with torch.no_grad():
        norms = [
            float(
                model.loaded.model(torch.tensor([c]), output_hidden_states=True)
                .hidden_states[1][0, -1]
                .norm()
            )
            for c in contexts
        ]

    assert residual_norms(model.loaded, [0], contexts)[0] == pytest.approx(sum(norms) / 2, rel=1e-6)


@given(st.text())
def test_every_text_gives_a_vector_name(text: str) -> None:
    name = vector_name(text)
    assert 1 <= len(name) <= 63
    assert name[0].isalpha()
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=12),
        st.lists(st.integers(0, 3), max_size=3),
        max_size=3,
    ),
    st.sampled_from(sorted(HOOK_POINTS)),
    st.booleans(),
)
def test_any_tensors_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], hook_point: str, is_cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    data = save({name: torch.zeros(shape) for name, shape in shapes.items()})
    path.write_bytes(data[: len(data) // 2] if is_cut else data)
    problems: tuple[str, ...] = ()
    found: dict[int, torch.Tensor] = {}
    try:
        found = read_plain_vectors(path, hook_point)
    except InteropError as error:
        problems = error.problems

    assert (len(found) > 0) != (len(problems) > 0)
    assert all(vector.ndim == 1 and block >= 0 for block, vector in found.items())
