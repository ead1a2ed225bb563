import hashlib
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.seeds import derive_seed

PARTS = st.lists(st.one_of(st.integers(), st.text()), max_size=5)


def test_a_seed_is_the_head_of_the_sha256_of_seed_and_parts_without_its_first_bit() -> None:
    digest = hashlib.sha256(b'[7, "problem", 3]').digest()

    assert derive_seed(7, "problem", 3) == int.from_bytes(digest[:8], "big") // 2


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from steering_pts.seeds import derive_seed; print(derive_seed(1, 'p', 2, 'base', 3))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(printed.stdout) == derive_seed(1, "p", 2, "base", 3)


def test_a_number_and_its_text_give_different_seeds() -> None:
    assert derive_seed(0, 1) != derive_seed(0, "1")


def test_where_parts_are_split_matters() -> None:
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")


@settings(deadline=None)
@given(st.integers(), PARTS)
def test_a_seed_fits_a_signed_64_bit_integer_and_is_not_negative(
    run_seed: int, parts: list[str | int]
) -> None:
    assert 0 <= derive_seed(run_seed, *parts) < 2**63


@settings(deadline=None)
@given(st.integers(), PARTS, PARTS)
def test_different_parts_give_different_seeds(
    run_seed: int, one: list[str | int], other: list[str | int]
) -> None:
    assert (derive_seed(run_seed, *one) == derive_seed(run_seed, *other)) == (one == other)
