"""Vector files: read as a whole or refused with everything that is wrong."""

from __future__ import annotations

import hashlib
import math
import pickle
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from steering_engine.errors import VectorFileError
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import encode_vector, load_vector, parse_vector, save_vector
from steering_engine.vectors.header import MAX_HEADER_BYTES
from steering_engine.vectors.schema import HeldOutLift, RecommendedTrigger, SteeringVector
from tests.support.hostile_vectors import with_header
from tests.support.models import save_tiny_model
from tests.support.vector_files import (
    Case,
    Change,
    Metadata,
    Tensors,
    cases,
    changed,
    full_vector,
    problems_of,
    set_metadata,
    unit,
)
from tests.support.vectors import random_vector


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(
        str(save_tiny_model(tmp_path_factory.mktemp("vector-file") / "model")), "cpu", "float32"
    )


@pytest.fixture(scope="module")
def vector(loaded: LoadedModel) -> SteeringVector:
    return full_vector(loaded)


@pytest.fixture(scope="module")
def sound(vector: SteeringVector) -> bytes:
    return encode_vector(vector)


class TestReading:
    def test_a_vector_survives_its_file(self, vector: SteeringVector, tmp_path: Path) -> None:
        digest = save_vector(tmp_path / "calm.safetensors", vector)
        read = load_vector(tmp_path / "calm.safetensors")
        assert read.metadata == vector.metadata
        assert read.contexts == vector.contexts
        assert read.sha256 == digest
        assert list(read.directions) == [0, 2]
        assert all(torch.equal(read.directions[block], vector.directions[block]) for block in (0, 2))
        assert list(read.probes) == [0, 1]
        assert all(torch.equal(read.probes[block].weight, vector.probes[block].weight) for block in (0, 1))
        assert [read.probes[block].bias for block in (0, 1)] == [0.25, -1.5]
        assert list(read.centroids) == [1, 2]
        assert all(torch.equal(read.centroids[block], vector.centroids[block]) for block in (1, 2))

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
            probes={0: (unit(32), 0.5), 2: (unit(32), 0.0)},
            centroids={1: unit(32)[None]},
            probe_threshold={0: 0.7, 2: 1e-9},
            probe_auc={0: 1.0, 2: 0.0},
            centroid_min_cosine={1: -1.0},
            source_run_digest="r",
            discovery_settings={"seed": 1, "threshold": 0.2, "note": None, "on": True},
            held_out_lift=lift,
            recommended_trigger=RecommendedTrigger(kind="probe", block=2, threshold=1e-9),
        )
        assert parse_vector(encode_vector(full), "full").metadata == full.metadata

    def test_a_vector_needs_nothing_but_a_direction(self, loaded: LoadedModel) -> None:
        bare = parse_vector(encode_vector(random_vector(loaded, "bare", [1])), "bare")
        assert (bare.contexts, bare.probes, bare.centroids) == ((), {}, {})

    def test_thresholds_are_optional(self, loaded: LoadedModel) -> None:
        probes, centroids = {1: (unit(32), 0.0)}, {1: unit(32)[None]}
        plain = random_vector(loaded, "plain", [1], probes=probes, centroids=centroids)
        assert parse_vector(encode_vector(plain), "plain").metadata == plain.metadata

    def test_the_digest_is_that_of_the_files_bytes(self, sound: bytes) -> None:
        assert parse_vector(sound, "calm").sha256 == hashlib.sha256(sound).hexdigest()

    def test_equal_vectors_have_equal_files(self, vector: SteeringVector, sound: bytes) -> None:
        assert all(encode_vector(vector) == sound for _ in range(5))
        backwards = SteeringVector(
            vector.metadata,
            dict(reversed(vector.directions.items())),
            vector.contexts,
            dict(reversed(vector.probes.items())),
            dict(reversed(vector.centroids.items())),
        )
        assert encode_vector(backwards) == sound
        assert encode_vector(parse_vector(sound, "calm")) == sound


RISE = "context.offsets must rise from 0 to the number of ids, without an empty context"
NAME_RULE = "metadata 'name': String should match pattern '^[a-z][a-z0-9-]{0,62}$'"
DIGEST_RULE = "metadata 'tokenizer_digest': String should match pattern '^[0-9a-f]{64}$'"

WRONG_METADATA: list[Case] = [
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
    ("a threshold of one", set_metadata(probe_threshold={"0": 1.0}),
     ["metadata 'probe_threshold.0': Input should be less than 1"]),
    ("a threshold of zero", set_metadata(probe_threshold={"0": 0.0}),
     ["metadata 'probe_threshold.0': Input should be greater than 0"]),
    ("a threshold that is no number", set_metadata(probe_threshold={"0": math.nan}),
     ["metadata 'probe_threshold.0': Input should be a finite number"]),
    ("an area above one", set_metadata(probe_auc={"1": 1.01}),
     ["metadata 'probe_auc.1': Input should be less than or equal to 1"]),
    ("an area below zero", set_metadata(probe_auc={"1": -0.01}),
     ["metadata 'probe_auc.1': Input should be greater than or equal to 0"]),
    ("a cosine above one", set_metadata(centroid_min_cosine={"2": 1.01}),
     ["metadata 'centroid_min_cosine.2': Input should be less than or equal to 1"]),
    ("a cosine below minus one", set_metadata(centroid_min_cosine={"2": -1.01}),
     ["metadata 'centroid_min_cosine.2': Input should be greater than or equal to -1"]),
    ("a threshold without its probe", set_metadata(probe_threshold={"0": 0.5, "2": 0.5}),
     ["metadata 'probe_threshold' is for blocks [0, 2], but [2] have no probe"]),
    ("an area without its probe", set_metadata(probe_auc={"2": 0.5}),
     ["metadata 'probe_auc' is for blocks [2], but [2] have no probe"]),
    ("a cosine without its centroids", set_metadata(centroid_min_cosine={"0": 0.5, "1": 0.5}),
     ["metadata 'centroid_min_cosine' is for blocks [0, 1], but [0] have no centroids"]),
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
    ("a trigger without what it needs", set_metadata(recommended_trigger={"kind": "probe", "block": 0}),
     ["metadata 'recommended_trigger': Value error, a trigger of kind probe has block and threshold, not ['block']"]),
    ("a trigger with what is another's", set_metadata(recommended_trigger={"kind": "always", "min_match": 2}),
     ["metadata 'recommended_trigger': Value error, a trigger of kind always has nothing else, not ['min_match']"]),
    ("a trigger of no kind", set_metadata(recommended_trigger={"kind": "often"}),
     ["metadata 'recommended_trigger.kind': Input should be 'always', 'context', 'probe' or 'similarity'"]),
    ("a trigger that reads a probe that is not there",
     set_metadata(recommended_trigger={"kind": "probe", "block": 2, "threshold": 0.5}),
     ["metadata 'recommended_trigger' reads block 2, which has no probe"]),
    ("a trigger that reads centroids that are not there",
     set_metadata(recommended_trigger={"kind": "similarity", "block": 0, "min_cosine": 0.5}),
     ["metadata 'recommended_trigger' reads block 0, which has no centroids"]),
]  # fmt: skip


class TestRefusing:
    @pytest.mark.parametrize(("change", "expected"), **cases(WRONG_METADATA))
    def test_a_wrong_field(self, change: Change, expected: list[str], sound: bytes) -> None:
        assert list(problems_of(changed(sound, change))) == expected

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
            tensors["probe.0.weight"] = torch.zeros(32)
            tensors["probe.0.bias"] = torch.tensor(math.inf)
            del tensors["probe.1.bias"]
            tensors["centroid.1"] = torch.eye(3, 32)[:2] - torch.eye(3, 32)[:1]
            metadata["probe_auc"] = '{"0": 0.5, "2": 0.5}'
            metadata["method"] = '""'
            metadata["colour"] = '"red"'

        assert set(problems_of(changed(sound, spoil))) == {
            "direction.0: has a value that is not finite",
            "direction.2: norm 3, expected 1",
            "unknown tensor 'extra'",
            RISE,
            "probe.0.weight: is zero everywhere",
            "probe.0.bias: has a value that is not finite",
            "probe.1.weight and probe.1.bias must come together",
            "centroid.1: zero in rows [0]",
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

    def test_a_header_is_read_up_to_a_limit(self, sound: bytes) -> None:
        body = sound[8 + int.from_bytes(sound[:8], "little") :]
        header = sound[8 : len(sound) - len(body)]

        def with_spaces(size: int) -> bytes:
            return size.to_bytes(8, "little") + header.ljust(size) + body

        assert parse_vector(with_spaces(MAX_HEADER_BYTES), "long").contexts
        (problem,) = problems_of(with_spaces(MAX_HEADER_BYTES + 8))
        assert problem.endswith(f"has {MAX_HEADER_BYTES + 8} bytes; at most {MAX_HEADER_BYTES} are read")

    def test_many_names_that_come_twice_are_found_in_no_time(self) -> None:
        entries = ",".join(f'"{number}":1,"{number}":2' for number in range(100_000))
        (problem,) = problems_of(with_header(f"{{{entries}}}"))  # pair by pair, this would take minutes
        assert "more than once" in problem

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
