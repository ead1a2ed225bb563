from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.oracles.python.inside.values import Handles, Json, MalformedError, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
)
HASHABLE = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
    ),
    max_leaves=12,
)
_NAMES = [
    "list",
    "tuple",
    "dict",
    "set",
    "int",
    "bytes",
    "complex",
    "range",
    "Fraction",
    "date",
    "class",
    "yours",
    "object",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.tuples(
            st.sampled_from(_NAMES),
            inner,
            inner,
        ).map(list)
    ),
    max_leaves=12,
)


class NoHandles(Handles):
    def handle(self, value: object) -> Json:
        raise AssertionError(f"{value!r} should have been copied")

    def resolve(self, kind: str, fields: list[Json]) -> object:
        raise MalformedError(f"{kind} of {fields}")


@given(VALUES)
def test_what_arrives_equals_what_was_sent_and_is_of_its_type(value: object) -> None:
    there = decode(json.loads(json.dumps(encode(value, NoHandles()))), NoHandles())

    assert there == value
    assert type(there) is type(value)


@given(JSON)
def test_whatever_arrives_is_a_value_or_malformed(value: object) -> None:
    try:
        decode(value, NoHandles())
    except MalformedError:
        return


def test_whole_numbers_of_any_length_take_no_quadratic_time() -> None:
    assert decode(encode(-(7**400_000), NoHandles()), NoHandles()) == -(7**400_000)


def test_the_methods_of_a_subclass_are_not_asked() -> None:
    class Liar(dict[str, int]):
        def items(self) -> object:  # type: ignore[override]
            return [("lie", 1)]

    class Keeps(NoHandles):
        def handle(self, value: object) -> Json:
            from steering_pts.oracles.python.inside.values import plain  # noqa: PLC0415 -- next to its use

            return plain(value, self)

    assert decode(encode(Liar(truth=2), Keeps()), Keeps()) == {"truth": 2}


@pytest.mark.parametrize("name", ["print", "eval", "__import__", "nothing"])
def test_only_classes_are_taken_from_the_builtins(name: str) -> None:
    with pytest.raises(MalformedError, match="no built-in class"):
        decode(["class", name], NoHandles())
