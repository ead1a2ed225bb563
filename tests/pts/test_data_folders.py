"""Data sets of the library `datasets`: folders that it has saved or can load, and those of the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from steering_pts.data import DataOptions, load_problems
from steering_pts.errors import DataError

ROWS = [{"question": f"Q{n}", "answer": n, "choices": {"label": ["A"], "text": [str(n)]}} for n in range(5)]
Script = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def quiet_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs code in a process that can reach no Hub, in a folder with the data set `owner/name`."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    lines = [{"question": f"Q{n}", "answer": str(n)} for n in range(400)]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))

    def run(code: str, **environment: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", f"from steering_pts.data import DataOptions, load_problems\n{code}"],
            cwd=tmp_path,
            env=os.environ
            | {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
            | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return run


def test_a_saved_data_set_has_the_problems_of_its_rows(tmp_path: Path, reference: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")

    assert load_problems(tmp_path / "saved") == load_problems(reference)


def test_a_saved_data_set_with_splits_is_read_by_split(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data.select([0, 1]), "test": data.select([2])}).save_to_disk(
        tmp_path / "saved"
    )

    assert [p.question for p in load_problems(tmp_path / "saved")] == ["Q2"]
    assert [p.question for p in load_problems(tmp_path / "saved", DataOptions(split="train"))] == ["Q0", "Q1"]
    with pytest.raises(DataError, match="no split 'dev'; pass --split with one of: train, test"):
        load_problems(tmp_path / "saved", DataOptions(split="dev"))


def test_a_folder_of_parquet_files_is_read_by_split_without_a_copy(tmp_path: Path, reference: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    data = datasets.Dataset.from_list(ROWS)
    data.select([0, 1, 2]).to_parquet(folder / "test-00000-of-00002.parquet")
    data.select([3, 4]).to_parquet(folder / "test-00001-of-00002.parquet")

    assert load_problems(folder) == load_problems(reference)
    assert not [*(tmp_path / "cache").rglob("*.arrow")]
    with pytest.raises(DataError, match=r"folder: the folder can't be loaded: .*dev.*test"):
        load_problems(folder, DataOptions(split="dev"))


def test_bad_rows_of_a_saved_data_set_are_named_by_their_numbers(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "answer": None}, ROWS[1]]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")

    with pytest.raises(DataError) as error:
        load_problems(tmp_path / "saved")

    assert error.value.problems == ("row 6: no field 'answer'", "row 7: repeats row 2")


def test_class_labels_are_their_numbers(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B"]),
        }
    )
    rows = [{"question": "Q", "choices": ["no", "yes"], "answer": 1}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")

    (problem,) = load_problems(tmp_path / "saved")

    assert (problem.question, problem.answer) == ("Q\n\nA) no\nB) yes", "B")


def test_a_folder_without_data_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(DataError) as error:
        load_problems(tmp_path / "folder")

    assert len(str(error.value).splitlines()) == 1
    assert "the folder can't be loaded: " in str(error.value)
    assert "doesn't contain any data files" in str(error.value)


def test_a_folder_with_a_damaged_file_is_one_clear_message(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"nothing")

    with pytest.raises(DataError, match="saved: the folder can't be loaded: ") as error:
        load_problems(tmp_path / "saved")
    assert len(str(error.value).splitlines()) == 1


# `datasets` takes a folder of that name for the data set, so nothing is fetched.


def test_a_limit_fetches_no_more_of_a_hub_data_set_than_it_takes(script: Script) -> None:
    # The last row repeats the first: whoever reads all rows finds that.
    code = (
        "import pathlib\n"
        "print(len(load_problems('hf:owner/name', DataOptions(limit=3))))\n"
        "print([*pathlib.Path('cache').rglob('*.arrow')])\n"
        "ids = frozenset(p.id for p in load_problems('hf:owner/name', DataOptions(limit=2)))\n"
        "for options in (DataOptions(), DataOptions(limit=3, shuffle_seed=0), DataOptions(limit=1, ids=ids)):\n"
        "    try: load_problems('hf:owner/name', options)\n"
        "    except Exception as error: print(error)"
    )

    assert script(code) == ["3", "[]", *["hf:owner/name: row 401: repeats row 1"] * 3]


def test_without_a_network_what_is_in_the_cache_is_read(script: Script) -> None:
    # Not streamed, for streaming does not look into the cache; rows behind the limit are left unread all the same.
    code = "print(len(load_problems('hf:owner/name', DataOptions(limit=3))))"

    assert script(code, HF_HUB_OFFLINE="1") == ["3"]


def test_a_hub_data_set_out_of_reach_is_one_line_with_its_name_and_the_reason(script: Script) -> None:
    code = "try: load_problems('owner/other:config')\nexcept Exception as error: print(type(error).__name__, error)"

    (line,) = script(code, HF_HUB_OFFLINE="1")

    assert line.startswith(
        "DataError owner/other:config: it can't be loaded from the Hub: Couldn't reach 'owner/other'"
    )


def test_what_can_be_no_name_of_a_data_set_is_told() -> None:
    with pytest.raises(DataError, match="a Hub data set is named owner/name or owner/name:config"):
        load_problems("hf:a/b/c")
