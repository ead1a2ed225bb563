"""The registry: vectors are loaded as a whole or not at all, described, and their rows put into the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steering_engine.errors import (
    VectorExistsError,
    VectorFileError,
    VectorMismatchError,
    VectorTableFullError,
)
from steering_engine.loading import LoadedModel, load_model
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.registry import RegisteredVector, VectorRegistry
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    InvalidRequestError,
    VectorCentroids,
    VectorFacts,
    VectorLayer,
    VectorProbe,
    VectorRef,
)
from tests.support.models import save_tiny_model
from tests.support.vector_files import full_vector
from tests.support.vectors import random_vector, save_random_vector


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("registry") / "model")), "cpu", "float32")


@pytest.fixture(scope="module")
def vector(loaded: LoadedModel) -> SteeringVector:
    return full_vector(loaded)


@pytest.fixture(scope="module")
def sound(vector: SteeringVector) -> bytes:
    return encode_vector(vector)


def table_of(loaded: LoadedModel, capacity: int = 100) -> DirectionTable:
    return DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device, capacity)


@pytest.fixture
def table(loaded: LoadedModel) -> DirectionTable:
    return table_of(loaded)


@pytest.fixture
def registry(loaded: LoadedModel, table: DirectionTable) -> VectorRegistry:
    return VectorRegistry(loaded, table)


def found(registry: VectorRegistry, name: str) -> RegisteredVector:
    registered = registry.find(VectorRef(name))
    assert registered is not None
    return registered


class TestDescribing:
    def test_a_loaded_vector_is_described(self, registry: VectorRegistry, sound: bytes) -> None:
        info = registry.load("vectors/calm", sound)
        assert (info.name, info.model, info.method) == ("vectors/calm", "tiny", "random")
        assert info.layers == (VectorLayer(0, 4.0, 1.0), VectorLayer(2, 6.0, 1.0))
        assert (info.context_count, info.min_match_tokens) == (3, 1)
        assert info.probes == (VectorProbe(0, 0.7, 0.9), VectorProbe(1, None, 0.8))
        assert info.centroids == (VectorCentroids(1, 2, None), VectorCentroids(2, 3, 0.6))
        assert json.loads(info.metadata["licence"]) == "Apache-2.0"
        assert info.metadata.keys().isdisjoint({"probe_threshold", "probe_auc", "centroid_min_cosine"})
        assert registry.infos() == [info]

    def test_admission_is_told_of_layers_contexts_probes_and_centroids(
        self, registry: VectorRegistry, sound: bytes
    ) -> None:
        digest = registry.load("vectors/calm", sound).sha256
        told = VectorFacts(digest, (0, 2), 3, probes={0: 0.7, 1: None}, centroids={1: None, 2: 0.6})
        assert registry.facts(VectorRef("calm")) == registry.facts(VectorRef("calm", digest)) == told
        assert registry.facts(VectorRef("calm", "0" * 64)) is None

    def test_a_vector_with_directions_only_has_neither_probes_nor_centroids(
        self, registry: VectorRegistry, loaded: LoadedModel
    ) -> None:
        info = registry.load("bare", encode_vector(random_vector(loaded, "bare", [1])))
        assert (info.probes, info.centroids) == ((), ())
        assert registry.facts(VectorRef("bare")) == VectorFacts(info.sha256, (1,), 0)

    def test_what_is_not_loaded_is_not_found(self, registry: VectorRegistry) -> None:
        assert registry.find(VectorRef("calm")) is None
        assert registry.facts(VectorRef("calm")) is None

    def test_vectors_are_listed_by_name(self, registry: VectorRegistry, sound: bytes) -> None:
        for name in ("b", "c", "a"):
            registry.load(name, sound)
        assert [info.name for info in registry.infos()] == ["vectors/a", "vectors/b", "vectors/c"]


class TestPlacing:
    def test_directions_and_weights_are_rows_of_the_table_to_the_bit(
        self, registry: VectorRegistry, table: DirectionTable, vector: SteeringVector, sound: bytes
    ) -> None:
        registry.load("calm", sound)
        calm = found(registry, "calm")
        for block, direction in vector.directions.items():
            assert torch.equal(table.rows(block)[calm.slots[block]], direction)
        for block, probe in vector.probes.items():
            assert torch.equal(table.rows(block)[calm.probes[block].slot], probe.weight)

    def test_a_probe_keeps_its_bias_threshold_and_area(self, registry: VectorRegistry, sound: bytes) -> None:
        registry.load("calm", sound)
        probes = found(registry, "calm").probes
        assert [(block, one.bias, one.threshold, one.auc) for block, one in probes.items()] == [
            (0, 0.25, 0.7, 0.9),
            (1, -1.5, None, 0.8),
        ]

    def test_centroids_are_rows_of_unit_length_in_their_order(
        self, registry: VectorRegistry, table: DirectionTable, vector: SteeringVector, sound: bytes
    ) -> None:
        registry.load("calm", sound)
        centroids = found(registry, "calm").centroids
        assert [(block, len(one.slots), one.min_cosine) for block, one in centroids.items()] == [
            (1, 2, None),
            (2, 3, 0.6),
        ]
        for block, one in centroids.items():
            exact = vector.centroids[block].double()
            unit = (exact / exact.norm(dim=1, keepdim=True)).float()
            assert torch.equal(table.directions(block, torch.tensor(one.slots)), unit)

    @pytest.mark.parametrize("length", [1e-38, 1e38])
    def test_centroids_are_normalised_whatever_their_length(
        self, length: float, registry: VectorRegistry, table: DirectionTable, loaded: LoadedModel
    ) -> None:
        centroids = {0: torch.full((1, 32), length)}
        registry.load("far", encode_vector(random_vector(loaded, "far", [0], centroids=centroids)))
        (slot,) = found(registry, "far").centroids[0].slots
        torch.testing.assert_close(table.rows(0)[slot], torch.full((32,), 32**-0.5))

    def test_vectors_share_no_slot(self, registry: VectorRegistry, sound: bytes) -> None:
        for name in ("a", "b", "c"):
            registry.load(name, sound)
        of_block: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for name in ("a", "b", "c"):
            one = found(registry, name)
            for block, slot in one.slots.items():
                of_block[block].append(slot)
            for block, probe in one.probes.items():
                of_block[block].append(probe.slot)
            for block, centroids in one.centroids.items():
                of_block[block] += centroids.slots
        assert {block: sorted(slots) for block, slots in of_block.items()} == {
            0: list(range(1, 7)),  # three directions and three probes
            1: list(range(1, 10)),  # three probes and six centroids
            2: list(range(1, 13)),  # three directions and nine centroids
        }

    def test_a_vector_that_does_not_fit_wholly_takes_no_row(self, loaded: LoadedModel, sound: bytes) -> None:
        registry = VectorRegistry(loaded, table_of(loaded, capacity=4))
        with pytest.raises(VectorTableFullError) as caught:
            registry.load("calm", sound)
        assert str(caught.value) == (
            "the vector needs 4 of block 2's rows, and 3 of 3 are free; a larger vector_table_bytes makes room"
        )
        assert registry.infos() == []
        for name in ("a", "b", "c"):
            registry.load(name, encode_vector(random_vector(loaded, name, [0, 1, 2])))
        assert [found(registry, name).slots for name in ("a", "b", "c")] == [
            {0: slot, 1: slot, 2: slot} for slot in (1, 2, 3)
        ]


class TestLoading:
    def test_the_same_file_again_changes_nothing(self, registry: VectorRegistry, sound: bytes) -> None:
        first = registry.load("calm", sound)
        before = registry.find(VectorRef("calm"))
        assert registry.load("calm", sound) == first
        assert registry.find(VectorRef("calm")) is before

    def test_another_file_under_a_loaded_name_is_refused(
        self, registry: VectorRegistry, sound: bytes, loaded: LoadedModel
    ) -> None:
        first = registry.load("calm", sound)
        with pytest.raises(VectorExistsError, match=f"vectors/calm is loaded with the digest {first.sha256}"):
            registry.load("calm", encode_vector(random_vector(loaded, "calm", [0], seed=9)))
        assert registry.infos() == [first]

    def test_another_digest_than_expected_is_refused(self, registry: VectorRegistry, sound: bytes) -> None:
        digest = parse_vector(sound, "calm").sha256
        assert registry.load("calm", sound, digest).sha256 == digest
        with pytest.raises(VectorFileError, match=f"its SHA-256 is {digest}, not {'0' * 64}"):
            registry.load("other", sound, "0" * 64)
        assert len(registry.infos()) == 1

    @pytest.mark.parametrize("name", ["Not A Name", "", "calm@" + "0" * 64])
    def test_a_name_that_is_none_is_refused(self, name: str, registry: VectorRegistry, sound: bytes) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            registry.load(name, sound)
        assert [violation.field for violation in caught.value.violations] == ["name"]

    def test_a_file_for_another_model_is_refused_with_every_difference(
        self, registry: VectorRegistry, tmp_path: Path
    ) -> None:
        other = load_model(
            str(save_tiny_model(tmp_path / "other", "llama", hidden_size=64, num_hidden_layers=2))
        )
        with pytest.raises(VectorMismatchError) as caught:
            registry.load("foreign", save_random_vector(tmp_path, other, "foreign", [0]))
        assert caught.value.problems == (
            "its hidden size is 64, the model's 32",
            "made for 2 blocks, the model has 3",
            "made for the model 'tiny' with another configuration",
        )

    def test_contexts_of_another_tokenizer_are_refused(
        self, registry: VectorRegistry, loaded: LoadedModel
    ) -> None:
        foreign = {"tokenizer_digest": "0" * 64}
        registry.load("bare", encode_vector(random_vector(loaded, "bare", [0], **foreign)))
        with pytest.raises(VectorMismatchError, match="its contexts were recorded with another tokenizer"):
            registry.load(
                "pivot", encode_vector(random_vector(loaded, "pivot", [0], contexts=[(1,)], **foreign))
            )

    def test_a_directory_is_loaded_though_some_files_are_bad(
        self, registry: VectorRegistry, loaded: LoadedModel, tmp_path: Path
    ) -> None:
        for name in ("alpha", "omega"):
            save_random_vector(tmp_path, loaded, name, [0])
        (tmp_path / "broken.safetensors").write_bytes(b"garbage")
        (tmp_path / "Bad Name.safetensors").write_bytes((tmp_path / "alpha.safetensors").read_bytes())
        (tmp_path / "folder.safetensors").mkdir()
        (tmp_path / "notes.txt").write_text("no vector")
        infos, errors = registry.load_directory(tmp_path)
        assert [info.name for info in infos] == ["vectors/alpha", "vectors/omega"]
        assert [error.source for error in errors] == [
            "Bad Name.safetensors", "broken.safetensors", "folder.safetensors",
        ]  # fmt: skip

    def test_a_directory_is_loaded_as_far_as_the_table_reaches(
        self, loaded: LoadedModel, tmp_path: Path
    ) -> None:
        for name in ("alpha", "beta", "omega"):
            save_random_vector(tmp_path, loaded, name, [0])
        infos, errors = VectorRegistry(loaded, table_of(loaded, capacity=3)).load_directory(tmp_path)
        assert [info.name for info in infos] == ["vectors/alpha", "vectors/beta"]
        (error,) = errors
        assert str(error) == (
            "omega.safetensors: the vector needs 1 of block 0's rows, and 0 of 2 are free; "
            "a larger vector_table_bytes makes room"
        )

    def test_a_file_that_is_not_there(self, registry: VectorRegistry, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            registry.load("calm", tmp_path / "absent.safetensors")
