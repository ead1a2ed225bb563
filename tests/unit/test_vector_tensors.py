"""The tensors of vector files: written and read back to the bit, and refused with everything that is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.loading import LoadedModel
from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.schema import MAX_CENTROIDS, SteeringVector
from tests.support.vector_files import (
    Case,
    Change,
    Metadata,
    Tensors,
    cases,
    changed,
    drop_tensor,
    problems_of,
    set_tensor,
    unit,
)
from tests.support.vectors import random_vector

RISE = "context.offsets must rise from 0 to the number of ids, without an empty context"
LAYOUT = "context.ids must be int32 [n] and context.offsets int64 [m + 1]"

WRONG: list[Case] = [
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
    (
        "a probe of another type",
        set_tensor("probe.0.weight", unit(32).double()),
        ["probe.0.weight: dtype torch.float64, expected float32"],
    ),
    (
        "a narrow probe",
        set_tensor("probe.0.weight", unit(31)),
        ["probe.0.weight: shape [31], expected [32]"],
    ),
    (
        "a probe with NaN",
        set_tensor("probe.0.weight", math.nan * unit(32)),
        ["probe.0.weight: has a value that is not finite"],
    ),
    ("a probe of zeros", set_tensor("probe.0.weight", 0 * unit(32)), ["probe.0.weight: is zero everywhere"]),
    (
        "a bias of another type",
        set_tensor("probe.0.bias", torch.tensor(1)),
        ["probe.0.bias: dtype torch.int64, expected float32"],
    ),
    ("a row of biases", set_tensor("probe.0.bias", torch.zeros(1)), ["probe.0.bias: shape [1], expected []"]),
    (
        "an infinite bias",
        set_tensor("probe.0.bias", torch.tensor(-math.inf)),
        ["probe.0.bias: has a value that is not finite"],
    ),
    (
        "a weight without bias",
        drop_tensor("probe.0.bias"),
        ["probe.0.weight and probe.0.bias must come together"],
    ),
    (
        "a bias without weight",
        drop_tensor("probe.0.weight"),
        ["probe.0.weight and probe.0.bias must come together"],
    ),
    (
        "a probe at a block too many",
        lambda tensors, _: tensors.update({"probe.3.weight": unit(32), "probe.3.bias": torch.tensor(0.0)}),
        ["probe.3.weight: the model has blocks 0 to 2", "probe.3.bias: the model has blocks 0 to 2"],
    ),
    ("a probe's padded block", set_tensor("probe.00.bias", unit(2)), ["unknown tensor 'probe.00.bias'"]),
    ("a probe's other part", set_tensor("probe.0.scale", unit(2)), ["unknown tensor 'probe.0.scale'"]),
    (
        "centroids of another type",
        set_tensor("centroid.1", torch.ones(2, 32).bfloat16()),
        ["centroid.1: dtype torch.bfloat16, expected float32"],
    ),
    (
        "a centroid that is no matrix",
        set_tensor("centroid.1", unit(32)),
        ["centroid.1: shape [32], expected [k, 32]"],
    ),
    (
        "narrow centroids",
        set_tensor("centroid.1", torch.ones(2, 31)),
        ["centroid.1: shape [2, 31], expected [k, 32]"],
    ),
    (
        "no centroids",
        set_tensor("centroid.1", torch.ones(0, 32)),
        ["centroid.1: 0 rows, expected 1 to 1024"],
    ),
    (
        "a centroid too many",
        set_tensor("centroid.1", torch.ones(MAX_CENTROIDS + 1, 32)),
        ["centroid.1: 1025 rows, expected 1 to 1024"],
    ),
    (
        "a centroid with NaN",
        set_tensor("centroid.1", torch.full((2, 32), math.nan)),
        ["centroid.1: has a value that is not finite"],
    ),
    (
        "centroids of zeros",
        set_tensor("centroid.1", torch.eye(4, 32)[[0, 1, 2]] * torch.tensor([0.0, 1.0, 0.0])[:, None]),
        ["centroid.1: zero in rows [0, 2]"],
    ),
    (
        "centroids at a block too many",
        set_tensor("centroid.3", torch.ones(1, 32)),
        ["centroid.3: the model has blocks 0 to 2"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), **cases(WRONG))
def test_a_wrong_tensor_is_refused(change: Change, expected: list[str], sound: bytes) -> None:
    assert list(problems_of(changed(sound, change))) == expected


def test_a_long_context_is_refused(loaded: LoadedModel) -> None:
    long = random_vector(loaded, "long", [0], contexts=[range(MAX_CONTEXT_TOKENS + 1)])
    assert problems_of(encode_vector(long)) == ("a context has 65 ids; at most 64 are kept",)


def test_a_file_without_any_direction_is_refused(sound: bytes) -> None:
    def drop(tensors: Tensors, _: Metadata) -> None:
        del tensors["direction.0"], tensors["direction.2"]

    assert "no tensor direction.{block}" in problems_of(changed(sound, drop))


def test_tensors_are_judged_though_the_metadata_do_not_tell_the_width(sound: bytes) -> None:
    def spoil(tensors: Tensors, metadata: Metadata) -> None:
        tensors["direction.0"] = unit(32)[None]
        tensors["probe.0.weight"] = unit(32)[None]
        tensors["centroid.2"] = unit(32)
        del metadata["hidden_size"]

    assert problems_of(changed(sound, spoil)) == (
        "metadata 'hidden_size': Field required",
        "direction.0: shape [1, 32], expected [hidden]",
        "probe.0.weight: shape [1, 32], expected [hidden]",
        "centroid.2: shape [32], expected [k, hidden]",
    )


def test_directions_may_be_rows_of_one_matrix(loaded: LoadedModel) -> None:
    matrix = torch.eye(32)
    metadata = random_vector(loaded, "rows", [0, 1]).metadata
    vector = SteeringVector(metadata, {0: matrix[3], 1: matrix[:, 4]}, centroids={1: matrix[:2]})
    read = parse_vector(encode_vector(vector), "rows")
    assert torch.equal(read.directions[1], matrix[4])
    assert torch.equal(read.centroids[1], matrix[:2])


def test_as_many_centroids_as_a_block_may_have_are_read(loaded: LoadedModel) -> None:
    most = torch.ones(MAX_CENTROIDS, 32)
    vector = random_vector(loaded, "most", [0], centroids={0: most})
    assert torch.equal(parse_vector(encode_vector(vector), "most").centroids[0], most)


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(weight=st.lists(NUMBERS, min_size=32, max_size=32).filter(any), bias=NUMBERS)
def test_a_probe_is_read_as_it_was_saved(weight: list[float], bias: float, loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "probing", [0], probes={2: (torch.tensor(weight), bias)})
    read = parse_vector(encode_vector(vector), "probing").probes[2]
    assert (read.weight.tolist(), read.bias) == (weight, bias)
    assert encode_vector(parse_vector(encode_vector(vector), "probing")) == encode_vector(vector)


def test_a_bias_is_rounded_to_what_a_file_holds(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "probing", [0], probes={0: (unit(32), 0.1)})
    assert parse_vector(encode_vector(vector), "probing").probes[0].bias == torch.tensor(0.1).item()
