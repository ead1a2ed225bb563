"""The options of commands that read a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from steering_pts.cli.run import RunFolder
from steering_pts.data import load_problems
from tests.support.pts import Ended, discover_arguments, run_pts


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 12 problems of 4 levels."""
    path = tmp_path / "table.txt"
    path.write_text("question;answer;level\n" + "".join(f"Question {n}?;{n};{n % 4}\n" for n in range(12)))
    return path


def discover(run: Path, model: Path, dataset: Path, *more: str) -> Ended:
    return run_pts(*discover_arguments(run, model, dataset, *more))


def test_discover_takes_the_rows_that_format_conditions_ids_shuffle_and_limit_leave(
    tmp_path: Path, ending_folder: Path, table: Path
) -> None:
    (tmp_path / "table.csv").write_bytes(table.read_bytes())
    every = {problem.question: problem for problem in load_problems(tmp_path / "table.csv")}
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{every[f'Question {n}?'].id}\n" for n in (1, 2, 5, 9, 10)))

    ended = discover(
        tmp_path / "run",
        ending_folder,
        table,
        *(
            "--format",
            "csv",
            "--layout",
            "plain",
            "--where",
            "level=1",
            "--where",
            "answer>1",
            "--ids",
            str(ids),
        ),
        *("--shuffle-seed", "3", "--limit", "1"),
    )

    assert ended.code == 0, ended.err
    with RunFolder(tmp_path / "run").read() as ledger:
        (problem,) = ledger.problems()
    assert problem in {every["Question 5?"], every["Question 9?"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "table.txt: its name ends in none of .jsonl"),
        (["--format", "xml"], "data options: unknown format 'xml'; expected jsonl, json, csv, parquet"),
        (
            ["--format", "csv", "--layout", "qa"],
            "data options: unknown layout 'qa'; expected humaneval, mbpp",
        ),
        (["--format", "csv", "--layout", "arc"], "no field 'choices', which the layout arc needs"),
        (["--format", "csv", "--where", "level"], "--where: 'level': expected FIELD=VALUE"),
        (
            ["--format", "csv", "--where", "levl=1"],
            "no field 'levl' for --where levl=1; one of: question, answer",
        ),
        (["--format", "csv", "--where", "level=7"], "none of its 12 rows satisfies level=7"),
        (["--format", "csv", "--ids", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--format", "parquet"], "it is not a Parquet file: it begins with b'ques'"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, ending_folder: Path, table: Path, options: list[str], message: str
) -> None:
    assert message in discover(tmp_path / "run", ending_folder, table, *options).error()
    assert not (tmp_path / "run").exists()


def test_vectors_takes_the_same_options_for_its_validation_problems(
    finished_run: RunFolder, table: Path
) -> None:
    options = ["--validation", str(table), "--format", "csv"]

    unseen = run_pts("vectors", str(finished_run.path), *options, "--where", "level=9")
    overlap = run_pts("vectors", str(finished_run.path), *options, "--where", "level=1")

    assert unseen.error() == f"{table}: none of its 12 rows satisfies level=9"
    assert overlap.error() == (
        f"data sets that overlap: {table}: 3 problems are those of the run; use problems that it never saw"
    )
