"""Names of vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_spec import VectorRef

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("strategy", VectorRef("strategy")),
        ("vectors/strategy", VectorRef("strategy")),
        (f"strategy@{DIGEST}", VectorRef("strategy", DIGEST)),
        (f"vectors/strategy@{DIGEST}", VectorRef("strategy", DIGEST)),
        ("a" + "-" * 62, VectorRef("a" + "-" * 62)),
    ],
)
def test_a_name_may_have_its_collection_and_a_pin(text: str, ref: VectorRef) -> None:
    assert VectorRef.parse(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vectors/",
        "Strategy",
        "9lives",
        "-x",
        "a b",
        "a_b",
        "a/b",
        "vectors/vectors/a",
        "a" * 64,
        "a\n",
        "é",
        "a@",
        f"a@{DIGEST[:-1]}",
        f"a@{DIGEST.upper()}",
        f"a@{DIGEST}\n",
        f"a@{DIGEST}@{DIGEST}",
    ],
)
def test_anything_else_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no vector name; expected vectors/"):
        VectorRef.parse(text)


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"no vector name") as caught:
        VectorRef.parse("X" * 10_000)
    assert len(str(caught.value)) < 250


@given(st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True), st.none() | st.just(DIGEST))
def test_a_ref_reads_its_own_name(identifier: str, digest: str | None) -> None:
    ref = VectorRef(identifier, digest)
    assert VectorRef.parse(ref.name) == ref


@given(st.text(max_size=100))
def test_parsing_either_gives_a_ref_of_the_same_text_or_refuses(text: str) -> None:
    try:
        ref = VectorRef.parse(text)
    except ValueError:
        return
    assert ref.name.removeprefix("vectors/") == text.removeprefix("vectors/")
