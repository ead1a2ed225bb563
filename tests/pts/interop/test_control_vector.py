"""GGUF control vectors: as the `gguf` package, repeng and llama.cpp read them, and back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.loading import load_model
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError
from steering_pts.interop.control_vector import (
    ControlVector,
    control_vector,
    read_control_vector,
    write_control_vector,
)
from steering_spec import SteeringRule, SteeringSpec
from tests.support.direct import get, request, running_engine
from tests.support.pts import run_pts
from tests.support.vectors import random_vector, save_random_vector

PROMPT = (70, 71, 72, 73, 74)


def as_repeng_reads(path: Path) -> tuple[str, dict[int, np.ndarray]]:
    """Architecture hint and directions, by the layout that repeng documents."""
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    assert bytes(architecture.parts[-1]) == b"controlvector"
    hint = reader.get_field("controlvector.model_hint")
    count = reader.get_field("controlvector.layer_count")
    assert hint is not None
    assert count is not None
    directions = {int(tensor.name.split(".")[1]): np.array(tensor.data) for tensor in reader.tensors}
    assert int(count.parts[-1][0]) == len(directions)
    return bytes(hint.parts[-1]).decode(), directions


def as_llama_cpp_reads(path: Path) -> dict[int, np.ndarray]:
    """Directions by layer; a file with anything that llama.cpp refuses fails."""
    directions = {}
    for tensor in gguf.GGUFReader(path).tensors:
        prefix, _, layer = tensor.name.partition(".")
        assert prefix == "direction"
        assert int(layer) > 0, "there is never a direction for layer 0"
        assert tensor.tensor_type is gguf.GGMLQuantizationType.F32
        assert len(tensor.shape) == 1
        directions[int(layer)] = np.array(tensor.data)
    return directions


def scaled(vector: SteeringVector, block: int) -> torch.Tensor:
    return vector.metadata.calibrated_strength[block] * vector.directions[block]


def test_every_reader_gets_the_directions_as_long_as_calibrated(model: SteeredModel, tmp_path: Path) -> None:
    path = save_random_vector(tmp_path, model.loaded, "calm", [1, 2], strength=4.0)
    out = tmp_path / "calm.gguf"

    ended = run_pts("export", str(path), "--to", "gguf", "--out", str(out), "--model-hint", "qwen3")

    assert (ended.code, ended.out, ended.err) == (0, f"{out}\n", "")
    vector = load_vector(path)
    expected = {block: scaled(vector, block).numpy() for block in (1, 2)}
    hint, by_repeng = as_repeng_reads(out)
    assert hint == "qwen3"
    for read in (by_repeng, as_llama_cpp_reads(out)):
        assert list(read) == [1, 2]
        assert all(np.array_equal(read[block], expected[block]) for block in expected)
    back = read_control_vector(out)
    assert all(torch.equal(back.directions[block], scaled(vector, block)) for block in expected)


def test_a_folder_becomes_a_folder_and_the_model_says_its_architecture(
    ending_folder: Path, model: SteeredModel, tmp_path: Path
) -> None:
    for name in ("calm", "bold"):
        save_random_vector(tmp_path / "vectors", model.loaded, name, [1], model_id=str(ending_folder))

    ended = run_pts("export", str(tmp_path / "vectors"), "--to", "gguf", "--out", str(tmp_path / "out"))

    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bold.gguf", "calm.gguf"]
    assert read_control_vector(tmp_path / "out" / "calm.gguf").model_hint == "qwen3"


def test_block_0_is_for_those_who_ask_for_it(model: SteeredModel) -> None:
    vector = random_vector(model.loaded, "calm", [0, 2])

    with pytest.raises(
        InteropError, match=r"llama\.cpp refuses the whole file; keep the other blocks alone \(--block 2\)"
    ):
        control_vector(vector, "qwen3")
    assert list(control_vector(vector, "qwen3", [2]).directions) == [2]
    assert list(control_vector(vector, "qwen3", with_block_0=True).directions) == [0, 2]
    with pytest.raises(InteropError, match=r"no direction at block 1; it has \[0, 2\]"):
        control_vector(vector, "qwen3", [1])


def test_a_vector_whose_model_is_gone_needs_a_hint(model: SteeredModel, tmp_path: Path) -> None:
    path = save_random_vector(tmp_path, model.loaded, "calm", [1], model_id="./gone")

    ended = run_pts("export", str(path), "--to", "gguf", "--out", str(tmp_path / "calm.gguf"))

    assert "calm.safetensors: its model './gone' can't be asked for its architecture" in ended.error()
    assert ended.err.rstrip().endswith("pass --model-hint")
    assert not (tmp_path / "calm.gguf").exists()


async def test_an_imported_file_steers_the_blocks_that_its_readers_steer(
    ending_folder: Path, tmp_path: Path
) -> None:
    """Repeng and llama.cpp add direction l to the output of decoder block l, counted from 0."""
    loaded = load_model(str(ending_folder))
    generator = torch.Generator().manual_seed(3)
    direction = 40 * torch.randn(loaded.hidden_size, generator=generator)
    write_control_vector(tmp_path / "calm.gguf", ControlVector("qwen3", {1: direction}))

    ended = run_pts(
        *("import", str(tmp_path / "calm.gguf"), "--from", "gguf", "--model", str(ending_folder)),
        *("--out", str(tmp_path / "calm.safetensors"), "--json"),
    )

    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["mended"] == []
    handle = loaded.model.model.layers[1].register_forward_hook(
        lambda _module, _args, output: output + direction
    )
    with torch.no_grad():
        expected = int(loaded.model(torch.tensor([PROMPT])).logits[0, -1].argmax())
    handle.remove()
    vector = load_vector(tmp_path / "calm.safetensors")
    async with running_engine(loaded, {"calm": vector}) as engine:
        steered = SteeringSpec((SteeringRule("calm"),))
        got = await get(engine, request(engine, "steered", PROMPT, steered, tokens=1))
        plain = await get(engine, request(engine, "plain", PROMPT, tokens=1))
    assert got.ids == (expected,) != plain.ids
    assert vector.metadata.residual_norm[1] > 0
    assert vector.metadata.calibrated_strength[1] == pytest.approx(float(direction.norm()))


def write_gguf(path: Path, architecture: str, tensors: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    ones = np.ones(4, dtype=np.float32)
    path = write_gguf(
        tmp_path / "it.gguf",
        "llama",
        {"direction.1": ones, "direction.x": ones, "direction.2": np.ones((2, 4), dtype=np.float32)},
    )

    with pytest.raises(InteropError) as caught:
        read_control_vector(path)

    assert caught.value.problems == (
        "its architecture is 'llama'; a control vector's is 'controlvector'",
        "tensor 'direction.x'; expected direction.{layer}",
        "direction.2: shape [2, 4]; expected [hidden]",
    )


def test_half_precision_is_read_and_another_models_hint_is_noted(tmp_path: Path, ending_folder: Path) -> None:
    path = write_gguf(
        tmp_path / "It is.gguf", "controlvector", {"direction.0": np.ones(32, dtype=np.float16)}
    )

    ended = run_pts(
        *("import", str(path), "--from", "gguf", "--model", str(ending_folder)),
        *("--out", str(tmp_path / "v.safetensors"), "--json"),
    )

    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["mended"] == [
        "its model_hint is '', the model's architecture 'qwen3': row 1"
    ]
    vector = load_vector(tmp_path / "v.safetensors")
    assert vector.metadata.name == "it-is"
    assert torch.equal(vector.directions[0], torch.full((32,), 32**-0.5))


@given(st.data())
def test_a_file_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    sound = write_gguf(folder / "sound.gguf", "controlvector", {"direction.1": np.ones(4, dtype=np.float32)})
    content = bytearray(sound.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    changed = folder / "changed.gguf"
    changed.write_bytes(bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))

    problems: tuple[str, ...] = ()
    found: dict[int, torch.Tensor] = {}
    try:
        found = dict(read_control_vector(changed).directions)
    except InteropError as error:
        problems = error.problems

    assert (len(found) > 0) != (len(problems) > 0)
    assert all(direction.ndim == 1 for direction in found.values())
