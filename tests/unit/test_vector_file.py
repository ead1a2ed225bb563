"""Vector files: read as a whole or refused with everything that is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from steering_engine.errors import VectorExistsError, VectorFileError, VectorMismatchError
from steering_engine.loading import LoadedModel, load_model
from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.file import encode_vector, load_vector, parse_vector, save_vector
from steering_engine.vectors.registry import VectorRegistry
from steering_engine.vectors.schema import HeldOutLift, SteeringVector
from steering_spec import InvalidRequestError, VectorFacts, VectorLayer, VectorRef
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector, save_random_vector

CONTEXTS = ((5, 6, 7), (8,), (5, 6))

Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(
        str(save_tiny_model(tmp_path_factory.mktemp("vector-file") / "model")), "cpu", "float32"
    )


@pytest.fixture(scope="module")
def vector(loaded: LoadedModel) -> SteeringVector:
    return random_vector(loaded, "calm", [0, 2], contexts=CONTEXTS, min_match=1)


@pytest.fixture(scope="module")
def sound(vector: SteeringVector) -> bytes:
    return encode_vector(vector)


def metadata_of(data: bytes) -> Metadata:
    length = int.from_bytes(data[:8], "little")
    found: Metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def changed(data: bytes, change: Callable[[Tensors, Metadata], None]) -> bytes:
    tensors, metadata = load(data), metadata_of(data)
    change(tensors, metadata)
    return save(tensors, metadata or None)


def problems_of(data: bytes) -> tuple[str, ...]:
    with pytest.raises(VectorFileError) as caught:
        parse_vector(data, "it.safetensors")
    assert str(caught.value) == "it.safetensors: " + "; ".join(caught.value.problems)
    return caught.value.problems


class TestReading:
    def test_a_vector_survives_its_file(self, vector: SteeringVector, tmp_path: Path) -> None:
        digest = save_vector(tmp_path / "calm.safetensors", vector)
        read = load_vector(tmp_path / "calm.safetensors")
        assert read.metadata == vector.metadata
        assert read.contexts == vector.contexts
        assert read.sha256 == digest
        assert read.directions.keys() == vector.directions.keys()
        assert all(torch.equal(read.directions[block], vector.directions[block]) for block in (0, 2))

    def test_every_field_of_the_metadata_survives(self, loaded: LoadedModel) -> None:
        lift = HeldOutLift(
            split="held-out", problems=40, unsteered=0.5, steered=0.6, lift=0.1, low95=-0.01, high95=0.2
        )
        full = random_vector(
            loaded,
            "full",
            [1],
            model_revision="main",
            event_count=12,
            split_half_cosine={1: 0.9},
            source_run_digest="r",
            discovery_settings={"seed": 1, "threshold": 0.2, "note": None, "on": True},
            held_out_lift=lift,
        )
        assert parse_vector(encode_vector(full), "full").metadata == full.metadata

    def test_a_vector_may_have_no_contexts(self, loaded: LoadedModel) -> None:
        assert parse_vector(encode_vector(random_vector(loaded, "bare", [1])), "bare").contexts == ()

    def test_the_digest_is_that_of_the_files_bytes(self, sound: bytes) -> None:
        assert parse_vector(sound, "calm").sha256 == hashlib.sha256(sound).hexdigest()

    def test_equal_vectors_have_equal_files(self, vector: SteeringVector, sound: bytes) -> None:
        assert all(encode_vector(vector) == sound for _ in range(5))
        assert encode_vector(parse_vector(sound, "calm")) == sound


def set_metadata(**values: object) -> Callable[[Tensors, Metadata], None]:
    return lambda _, metadata: metadata.update({key: json.dumps(value) for key, value in values.items()})


def set_tensor(name: str, tensor: torch.Tensor) -> Callable[[Tensors, Metadata], None]:
    return lambda tensors, _: tensors.update({name: tensor})


def drop_tensor(name: str) -> Callable[[Tensors, Metadata], None]:
    def drop(tensors: Tensors, _: Metadata) -> None:
        del tensors[name]

    return drop


def unit(size: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(0), size).float()


RISE = "context.offsets must rise from 0 to the number of ids, without an empty context"
NAME_RULE = "metadata 'name': String should match pattern '^[a-z][a-z0-9-]{0,62}$'"
DIGEST_RULE = "metadata 'tokenizer_digest': String should match pattern '^[0-9a-f]{64}$'"
LAYOUT = "context.ids must be int32 [n] and context.offsets int64 [m + 1]"

WRONG_TENSORS: list[tuple[str, Callable[[Tensors, Metadata], None], list[str]]] = [
    (
        "float64",
        set_tensor("direction.0", unit(32).double()),
        ["direction.0: dtype torch.float64, expected float32"],
    ),
    (
        "float16",
        set_tensor("direction.0", unit(32).half()),
        ["direction.0: dtype torch.float16, expected float32"],
    ),
    ("narrow", set_tensor("direction.0", unit(31)), ["direction.0: shape [31], expected [32]"]),
    ("a matrix", set_tensor("direction.0", unit(32)[None]), ["direction.0: shape [1, 32], expected [32]"]),
    ("a scalar", set_tensor("direction.0", torch.tensor(1.0)), ["direction.0: shape [], expected [32]"]),
    (
        "NaN",
        set_tensor("direction.0", torch.full((32,), math.nan)),
        ["direction.0: has a value that is not finite"],
    ),
    (
        "infinite",
        set_tensor("direction.0", torch.full((32,), math.inf)),
        ["direction.0: has a value that is not finite"],
    ),
    ("long", set_tensor("direction.0", 2 * unit(32)), ["direction.0: norm 2, expected 1"]),
    ("zero", set_tensor("direction.0", 0 * unit(32)), ["direction.0: norm 0, expected 1"]),
    (
        "a block too many",
        set_tensor("direction.3", unit(32)),
        [
            "direction.3: the model has blocks 0 to 2",
            "metadata 'calibrated_strength' is for blocks [0, 2], the directions for [0, 2, 3]",
            "metadata 'residual_norm' is for blocks [0, 2], the directions for [0, 2, 3]",
        ],
    ),
    (
        "a missing direction",
        drop_tensor("direction.2"),
        [
            "metadata 'calibrated_strength' is for blocks [0, 2], the directions for [0]",
            "metadata 'residual_norm' is for blocks [0, 2], the directions for [0]",
        ],
    ),
    ("an extra tensor", set_tensor("bias", unit(2)), ["unknown tensor 'bias'"]),
    ("a padded block number", set_tensor("direction.02", unit(32)), ["unknown tensor 'direction.02'"]),
    ("a foreign digit", set_tensor("direction.٢", unit(32)), ["unknown tensor 'direction.٢'"]),
    ("a negative block", set_tensor("direction.-1", unit(32)), ["unknown tensor 'direction.-1'"]),
    (
        "a block of thousands of digits",
        set_tensor("direction." + "9" * 5000, unit(32)),
        [f"unknown tensor {'direction.' + '9' * 5000!r}"],
    ),
    (
        "ids without offsets",
        drop_tensor("context.offsets"),
        ["context.ids and context.offsets must come together"],
    ),
    (
        "offsets without ids",
        drop_tensor("context.ids"),
        ["context.ids and context.offsets must come together"],
    ),
    ("wide ids", set_tensor("context.ids", torch.zeros(6, dtype=torch.int64)), [LAYOUT]),
    ("narrow offsets", set_tensor("context.offsets", torch.tensor([0, 6], dtype=torch.int32)), [LAYOUT]),
    ("a matrix of ids", set_tensor("context.ids", torch.zeros(1, 6, dtype=torch.int32)), [LAYOUT]),
    ("offsets past the ids", set_tensor("context.offsets", torch.tensor([0, 7])), [RISE]),
    ("offsets before the end", set_tensor("context.offsets", torch.tensor([0, 5])), [RISE]),
    ("offsets not from 0", set_tensor("context.offsets", torch.tensor([1, 6])), [RISE]),
    ("offsets that fall", set_tensor("context.offsets", torch.tensor([0, 5, 3, 6])), [RISE]),
    ("negative offsets", set_tensor("context.offsets", torch.tensor([0, -3, 6])), [RISE]),
    ("an empty context", set_tensor("context.offsets", torch.tensor([0, 3, 3, 6])), [RISE]),
    ("a single offset", set_tensor("context.offsets", torch.tensor([0])), [RISE]),
    ("no offsets", set_tensor("context.offsets", torch.tensor([], dtype=torch.int64)), [RISE]),
    (
        "a negative id",
        set_tensor("context.ids", torch.tensor([1, 2, 3, -4, 5, 6], dtype=torch.int32)),
        ["context.ids holds a negative id"],
    ),
]

WRONG_METADATA: list[tuple[str, Callable[[Tensors, Metadata], None], list[str]]] = [
    (
        "another schema",
        set_metadata(schema="steering.vector/2"),
        ["metadata 'schema': Input should be 'steering.vector/1'"],
    ),
    ("a bad name", set_metadata(name="Not A Name"), [NAME_RULE]),
    ("a name with a line's end", set_metadata(name="calm\n"), [NAME_RULE]),
    ("a digest too short", set_metadata(tokenizer_digest="abc"), [DIGEST_RULE]),
    ("another hook point", set_metadata(hook_point="mlp_out"), ["metadata 'hook_point': Input should be 'resid_post'"]),
    ("no width", set_metadata(hidden_size=0), ["metadata 'hidden_size': Input should be greater than or equal to 1"]),
    (
        "a strength of zero",
        set_metadata(calibrated_strength={"0": 1.0, "2": 0.0}),
        ["metadata 'calibrated_strength.2': Input should be greater than 0"],
    ),
    (
        "an infinite strength",
        set_metadata(calibrated_strength={"0": 1.0, "2": math.inf}),
        ["metadata 'calibrated_strength.2': Input should be a finite number"],
    ),
    (
        "strengths for other blocks",
        set_metadata(calibrated_strength={"0": 1.0, "1": 1.0}),
        ["metadata 'calibrated_strength' is for blocks [0, 1], the directions for [0, 2]"],
    ),
    (
        "a time without zone",
        set_metadata(created="2026-01-01T00:00:00"),
        ["metadata 'created': Input should have timezone info"],
    ),
    ("an unknown field", set_metadata(colour="red"), ["metadata 'colour': Extra inputs are not permitted"]),
    (
        "contexts without a minimum",
        set_metadata(context_min_match=0),
        ["metadata 'context_min_match' must be at least 1 for a file with contexts"],
    ),
    (
        "a lift that is no rate",
        set_metadata(
            held_out_lift={
                "split": "s", "problems": 1, "unsteered": 2, "steered": 1, "lift": 0, "low95": 0, "high95": 0,
            }
        ),
        ["metadata 'held_out_lift.unsteered': Input should be less than or equal to 1"],
    ),
]  # fmt: skip


def cases(table: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    return {"argvalues": [case[1:] for case in table], "ids": [case[0] for case in table]}


class TestRefusing:
    @pytest.mark.parametrize(("change", "expected"), **cases(WRONG_TENSORS))
    def test_a_wrong_tensor(
        self, change: Callable[[Tensors, Metadata], None], expected: list[str], sound: bytes
    ) -> None:
        assert list(problems_of(changed(sound, change))) == expected

    @pytest.mark.parametrize(("change", "expected"), **cases(WRONG_METADATA))
    def test_a_wrong_field(
        self, change: Callable[[Tensors, Metadata], None], expected: list[str], sound: bytes
    ) -> None:
        assert list(problems_of(changed(sound, change))) == expected

    def test_a_long_context(self, loaded: LoadedModel) -> None:
        long = random_vector(loaded, "long", [0], contexts=[range(MAX_CONTEXT_TOKENS + 1)])
        assert problems_of(encode_vector(long)) == ("a context has 65 ids; at most 64 are kept",)

    def test_no_direction_at_all(self, sound: bytes) -> None:
        def drop(tensors: Tensors, _: Metadata) -> None:
            del tensors["direction.0"], tensors["direction.2"]

        assert "no tensor direction.{block}" in problems_of(changed(sound, drop))

    @pytest.mark.parametrize("field", ["name", "model_config_digest", "created", "calibrated_strength"])
    def test_a_missing_field(self, field: str, sound: bytes) -> None:
        assert problems_of(changed(sound, lambda _, metadata: metadata.pop(field) and None)) == (
            f"metadata {field!r}: Field required",
        )

    @pytest.mark.parametrize(
        "text", ["{", "", "9" * 5000, "[" * 100_000], ids=["open", "empty", "digits", "deep"]
    )
    def test_a_field_that_is_no_json(self, text: str, sound: bytes) -> None:
        found = problems_of(changed(sound, lambda _, metadata: metadata.update(licence=text)))
        assert found == ("metadata 'licence' is not JSON",)

    def test_everything_that_is_wrong_is_told_at_once(self, sound: bytes) -> None:
        def spoil(tensors: Tensors, metadata: Metadata) -> None:
            tensors["direction.0"] = torch.full((32,), math.nan)
            tensors["direction.2"] = 3 * unit(32)
            tensors["extra"] = unit(2)
            tensors["context.offsets"] = torch.tensor([0, 99])
            metadata["method"] = '""'
            metadata["colour"] = '"red"'

        assert set(problems_of(changed(sound, spoil))) == {
            "direction.0: has a value that is not finite",
            "direction.2: norm 3, expected 1",
            "unknown tensor 'extra'",
            RISE,
            "metadata 'method': String should have at least 1 character",
            "metadata 'colour': Extra inputs are not permitted",
        }

    def test_a_safetensors_file_of_another_kind(self) -> None:
        expected = ("not a steering vector: its metadata name no schema (expected steering.vector/1)",)
        assert problems_of(save({"resid.0": torch.zeros(2, 2)})) == expected
        assert problems_of(save({"resid.0": torch.zeros(2, 2)}, {"format": "pt"})) == expected

    @pytest.mark.parametrize(
        "data",
        [b"", b"garbage", b"\xff" * 100, pickle.dumps({"direction.0": [1.0]}), b"PK\x03\x04" + bytes(100)],
        ids=["empty", "garbage", "bytes", "a pickle", "an archive"],
    )
    def test_what_is_no_safetensors_file(self, data: bytes) -> None:
        (problem,) = problems_of(data)
        assert problem.startswith("not a sound safetensors file: ")

    def test_any_truncation(self, sound: bytes) -> None:
        for length in range(0, len(sound), 7):
            (problem,) = problems_of(sound[:length])
            assert problem.startswith("not a sound safetensors file: ")

    @given(data=st.data())
    @settings(max_examples=200)
    def test_any_change_of_bytes_is_read_or_refused_but_never_raises_otherwise(
        self, data: st.DataObject, sound: bytes
    ) -> None:
        at = data.draw(st.integers(0, len(sound) - 1))
        spoilt = sound[:at] + data.draw(st.binary(min_size=1, max_size=8)) + sound[at + 1 :]
        with suppress(VectorFileError):
            parse_vector(spoilt, "spoilt")


class TestSaving:
    def test_a_vector_that_would_not_be_read_back_is_not_written(
        self, vector: SteeringVector, tmp_path: Path
    ) -> None:
        path = tmp_path / "calm.safetensors"
        path.write_bytes(b"what was there before")
        wrong = SteeringVector(vector.metadata, {0: 2 * unit(32), 2: unit(32)})
        with pytest.raises(VectorFileError, match=r"direction\.0: norm 2, expected 1"):
            save_vector(path, wrong)
        assert path.read_bytes() == b"what was there before"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_write_that_fails_leaves_nothing_half_written(
        self, vector: SteeringVector, tmp_path: Path
    ) -> None:
        path = tmp_path / "calm.safetensors"
        path.mkdir()  # a file can't take its place
        with pytest.raises(OSError, match="directory"):
            save_vector(path, vector)
        assert list(tmp_path.iterdir()) == [path]

    def test_folders_are_made(self, vector: SteeringVector, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "calm.safetensors"
        save_vector(path, vector)
        assert [one.name for one in path.parent.iterdir()] == ["calm.safetensors"]

    def test_others_may_read_the_file_as_any_other(self, vector: SteeringVector, tmp_path: Path) -> None:
        save_vector(tmp_path / "calm.safetensors", vector)
        (tmp_path / "plain").touch()
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("calm.safetensors", "plain")]
        assert modes[0] == modes[1]

    def test_directions_may_be_rows_of_one_matrix(self, loaded: LoadedModel, tmp_path: Path) -> None:
        matrix = torch.eye(32)
        metadata = random_vector(loaded, "rows", [0, 1]).metadata
        save_vector(tmp_path / "rows", SteeringVector(metadata, {0: matrix[3], 1: matrix[:, 4]}))
        assert torch.equal(load_vector(tmp_path / "rows").directions[1], matrix[4])


@pytest.fixture
def registry(loaded: LoadedModel) -> VectorRegistry:
    return VectorRegistry(loaded, DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device))


class TestRegistry:
    def test_a_loaded_vector_is_described(self, registry: VectorRegistry, sound: bytes) -> None:
        info = registry.load("vectors/calm", sound)
        assert (info.name, info.model, info.method) == ("vectors/calm", "tiny", "random")
        assert info.layers == (VectorLayer(0, 4.0, 1.0), VectorLayer(2, 6.0, 1.0))
        assert (info.context_count, info.min_match_tokens) == (3, 1)
        assert json.loads(info.metadata["licence"]) == "Apache-2.0"
        assert registry.infos() == [info]
        assert registry.facts(VectorRef("calm", "0" * 64)) == VectorFacts(info.sha256, (0, 2), 3)

    def test_what_is_not_loaded_is_not_found(self, registry: VectorRegistry) -> None:
        assert registry.find(VectorRef("calm")) is None
        assert registry.facts(VectorRef("calm")) is None

    def test_vectors_are_listed_by_name(self, registry: VectorRegistry, sound: bytes) -> None:
        for name in ("b", "c", "a"):
            registry.load(name, sound)
        assert [info.name for info in registry.infos()] == ["vectors/a", "vectors/b", "vectors/c"]

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

    def test_a_file_that_is_not_there(self, registry: VectorRegistry, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            registry.load("calm", tmp_path / "absent.safetensors")
