from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.errors import EvaluationError, LedgerLockedError
from steering_pts.evaluation.journal import Journal, key_of, remove
from steering_pts.evaluation.samples import BROKEN, Sample, from_json, to_json
from steering_spec import FinishReason, SteeringAct

acts = st.lists(
    st.builds(
        SteeringAct,
        rule_index=st.integers(0, 2),
        layers=st.sampled_from([(0,), (1, 2)]),
        step=st.integers(0, 9),
    ),
    max_size=9,
    unique_by=lambda act: (act.step, act.rule_index),
)
samples = st.builds(
    Sample,
    ids=st.lists(st.integers(0, 99), max_size=9).map(tuple),
    text=st.text(),
    finish=st.sampled_from([*FinishReason, None]),
    acts=acts.map(lambda found: tuple(sorted(found, key=lambda act: (act.step, act.rule_index)))),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.jsonl"


def test_what_was_put_is_there_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.put("a", {"text": "half a pair \ud800, a line\u2028end\n"})
        journal.put("b", {"ids": [1, 2]})

    with Journal(path) as journal:
        assert len(journal) == 2
        assert journal.get("a") == {"text": "half a pair \ud800, a line\u2028end\n"}
        assert journal.get("b") == {"ids": [1, 2]}
        assert "c" not in journal


@given(st.integers(0, 200))
def test_a_file_that_was_cut_anywhere_holds_what_was_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(5):
            journal.put(f"k{number}", {"value": number})
    data = path.read_bytes()
    path.write_bytes(data[:length])
    whole = data[:length].count(b"\n")

    with Journal(path) as journal:
        assert len(journal) == whole
        journal.put("new", {"value": 9})

    with Journal(path) as journal:
        assert [journal.get(f"k{number}") for number in range(whole)] == [
            {"value": number} for number in range(whole)
        ]
        assert journal.get("new") == {"value": 9}


def test_a_damaged_line_is_told_with_its_number(path: Path) -> None:
    with Journal(path) as journal:
        journal.put("a", {})
    path.write_bytes(path.read_bytes() + b"[1]\n")

    with pytest.raises(EvaluationError, match=r"journal\.jsonl is damaged: line 2 is not a whole result"):
        Journal(path)
    with Journal(path.with_name("other.jsonl")):  # nothing is left locked
        pass


def test_two_writers_are_one_too_many(path: Path) -> None:
    with Journal(path):
        with pytest.raises(LedgerLockedError):
            Journal(path)
        with pytest.raises(LedgerLockedError):
            remove(path)

    remove(path)
    assert not path.exists()
    remove(path)  # what is not there is removed already


@given(samples)
def test_a_sample_is_read_as_it_was_written(sample: Sample) -> None:
    assert from_json(to_json(sample)) == sample


def test_a_broken_completion_is_one() -> None:
    assert from_json(to_json(BROKEN)) == BROKEN
    assert BROKEN.broken
    assert not BROKEN.truncated
    assert BROKEN.repetition == 0


def test_keys_tell_apart_what_differs_in_anything() -> None:
    keys = [key_of("a", 1), key_of("a", "1"), key_of("a1"), key_of(("a", 1))]
    assert len(set(keys)) == len(keys)
    assert key_of("a", 1) == key_of("a", 1)
