"""`pts export`: what a run holds, as tables that other programs read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.cli.export import _print
from steering_pts.cli.run import RunFolder
from steering_pts.data import Problem, load_problems
from steering_pts.errors import LedgerError
from steering_pts.export import TABLES, RowTable, lines_of, with_text, write_parquet
from steering_pts.export.columns import columns_of, row_of, rows_of
from steering_pts.ledger import Arm, CompletionRecord, Ledger, RolloutKey, RolloutRecord, ScoreRecord
from steering_pts.ledger.export import write_atomically
from steering_pts.oracles import Verdict
from steering_pts.search import candidates
from tests.support.pts import Ended, run_pts

WHATS = ["pivots", "candidates", "completions", "rollouts", "problems"]


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Inner:
    token_id: int
    share: float


@dataclasses.dataclass(frozen=True)
class Key:
    name: str
    position: int


@dataclasses.dataclass(frozen=True)
class Everything:
    """A field of every kind that records have."""

    key: Key
    ids: tuple[int, ...]
    four: tuple[int, int, int, int]
    inner: tuple[Inner, ...]
    fields: dict[str, str]
    colour: Colour
    arm: Literal["left", "right"]
    note: str | None
    weight: float | None
    flag: bool


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    Everything,
    key=st.builds(Key, name=texts, position=numbers),
    ids=st.lists(numbers).map(tuple),
    four=st.tuples(numbers, numbers, numbers, numbers),
    inner=st.lists(st.builds(Inner, token_id=numbers, share=finite), max_size=2).map(tuple),
    fields=st.dictionaries(texts, texts, max_size=2),
    colour=st.sampled_from(Colour),
    arm=st.sampled_from(["left", "right"]),
    note=st.none() | texts,
    weight=st.none() | finite,
    flag=st.booleans(),
)


def table_of(made: Sequence[Everything]) -> RowTable:
    return RowTable(columns_of(Everything), rows_of(made))


def export(run: RunFolder, *options: str) -> Ended:
    return run_pts("export", str(run.path), *options)


def exported(run: RunFolder, what: str) -> list[dict[str, Any]]:
    ended = export(run, "--what", what)
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line) for line in ended.out.splitlines()]


# --- any record -------------------------------------------------------------------------------------------------------


def test_a_record_is_a_row_with_the_fields_of_what_is_inside_it() -> None:
    record = Everything(
        Key("k", 3), (1, 2), (1, 2, 3, 4), (Inner(7, 0.5),), {"a": "b"}, Colour.RED, "left", None, 1.5, True
    )

    assert row_of(record) == {
        "name": "k",
        "position": 3,
        "ids": [1, 2],
        "four": [1, 2, 3, 4],
        "inner": [{"token_id": 7, "share": 0.5}],
        "fields": {"a": "b"},
        "colour": "red",
        "arm": "left",
        "note": None,
        "weight": 1.5,
        "flag": True,
    }
    assert [column.name for column in columns_of(Everything)] == [*row_of(record)]


@given(made=st.lists(records, max_size=3))
def test_any_records_come_back_from_json_lines(made: list[Everything]) -> None:
    lines = lines_of(table_of(made), "jsonl")

    assert [json.loads(line) for line in lines] == [row_of(record) for record in made]


@given(made=st.lists(records, max_size=3))
def test_any_records_come_back_from_csv(made: list[Everything]) -> None:
    text = "".join(f"{line}\n" for line in lines_of(table_of(made), "csv"))
    found = list(csv.DictReader(io.StringIO(text, newline="")))

    nested = ("ids", "four", "inner", "fields", "flag")
    wanted = [row_of(record) for record in made]
    assert [{name: json.loads(row[name]) for name in nested} for row in found] == [
        {name: row[name] for name in nested} for row in wanted
    ]
    assert [(row["name"], int(row["position"]), row["note"], row["weight"]) for row in found] == [
        (
            row["name"],
            row["position"],
            row["note"] or "",
            "" if row["weight"] is None else repr(row["weight"]),
        )
        for row in wanted
    ]


@given(made=st.lists(records, max_size=3))
def test_any_records_come_back_from_parquet_with_native_lists(
    tmp_path_factory: pytest.TempPathFactory, made: list[Everything]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    write_parquet(table_of(made), path)

    found = pq.read_table(path).to_pylist(maps_as_pydicts="strict")

    assert found == [row_of(record) for record in made]


def test_text_stands_right_after_its_token_ids() -> None:
    @dataclasses.dataclass(frozen=True)
    class Tokens:
        problem_id: str
        prompt_ids: tuple[int, ...]
        ids: tuple[int, ...]
        token_id: int

    Tokens.__annotations__ = {
        "problem_id": str,
        "prompt_ids": tuple[int, ...],
        "ids": tuple[int, ...],
        "token_id": int,
    }
    table = RowTable(columns_of(Tokens), rows_of([Tokens("p", (1, 2), (), 7)]))

    wide = with_text(table, lambda ids: "".join(f"<{one}>" for one in ids))

    assert [column.name for column in wide.columns] == [
        *["problem_id", "prompt_ids", "prompt", "ids", "text", "token_id", "token"]
    ]
    assert list(wide.rows) == [
        {
            "problem_id": "p",
            "prompt_ids": [1, 2],
            "prompt": "<1><2>",
            "ids": [],
            "text": "",
            "token_id": 7,
            "token": "<7>",
        }
    ]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_every_table_can_be_asked_for() -> None:
    assert [*TABLES] == WHATS


@pytest.mark.parametrize("what", ["pivots", "completions", "problems"])
def test_a_table_has_a_row_for_each_record_of_the_ledger(finished_run: RunFolder, what: str) -> None:
    with finished_run.read() as ledger:
        records = {"pivots": ledger.pivots, "completions": ledger.completions, "problems": ledger.problems}[
            what
        ]()

    assert records
    assert exported(finished_run, what) == [row_of(record) for record in records]


def test_rollouts_have_their_keys_as_columns(finished_run: RunFolder) -> None:
    with finished_run.read() as ledger:
        completions = sorted(completion.id for completion in ledger.completions())
        wanted = [row_of(rollout) for one in completions for rollout in ledger.rollouts_for(one)]

    found = exported(finished_run, "rollouts")

    assert found == wanted
    assert [*found[0]][:5] == ["completion_id", "position", "arm", "stage", "index"]


def test_candidates_are_the_tokens_that_the_screen_left_with_what_became_of_them(
    finished_run: RunFolder,
) -> None:
    found = exported(finished_run, "candidates")

    with finished_run.read() as ledger:
        tau = ledger.settings()["search.tau"]
        assert isinstance(tau, float)
        places = [(s.completion_id, k) for s in ledger.scores() for k in candidates(s.probabilities, tau)]
        nominees = {(r.completion_id, r.position): r for r in ledger.nominees()}
        confirmations = {(r.completion_id, r.position): r for r in ledger.confirmations()}
    assert [(row["completion_id"], row["position"]) for row in found] == places
    for row in found:
        place = row["completion_id"], row["position"]
        nominee, confirmation = nominees.get(place), confirmations.get(place)
        assert row["posterior"] == (nominee and nominee.posterior)
        assert row["confirmation_delta"] == (confirmation and confirmation.delta)
    assert 0 < sum(row["posterior"] is not None for row in found) < len(found)


def sentence_run(folder: Path, probabilities: tuple[float, ...]) -> RunFolder:
    """A run over sentences that has drawn alternatives to those at 0 and 3, and rollouts that pass the one at 2."""
    run = RunFolder(folder)
    drawn: list[tuple[int, Arm, int]] = [
        (0, "alternative", 0),
        (3, "alternative", 0),
        (3, "alternative", 1),
        (2, "on_path", 0),
    ]
    with Ledger.open(run.ledger, {"search.tau": 0.2, "search.unit": "sentence"}) as ledger:
        ledger.add_problems([Problem("p", "Q", "A")])
        ledger.add_completions(
            [CompletionRecord("c", "p", 0, 0, (1,), (5, 6, 7, 8, 9), Verdict.CORRECT, "A", "stop")]
        )
        ledger.add_scores([ScoreRecord("c", probabilities)])
        keys = [RolloutKey("c", position, arm, "explore", index) for position, arm, index in drawn]
        ledger.add_rollouts([RolloutRecord(key, 0, (4,), Verdict.CORRECT, "A", 1) for key in keys])
    return run


def test_candidates_among_sentences_are_those_that_alternatives_were_drawn_to(tmp_path: Path) -> None:
    found = exported(sentence_run(tmp_path, (0.9, 0.1, 0.9, 0.95, 0.1)), "candidates")

    assert [(row["position"], row["token_id"], row["probability"]) for row in found] == [
        (0, 5, 0.9),
        (3, 8, 0.95),
    ]
    assert {row["posterior"] for row in found} == {None}


def test_candidates_of_rows_that_do_not_fit_together_are_a_clear_error(tmp_path: Path) -> None:
    run = sentence_run(tmp_path, (0.9, 0.1))

    error = export(run, "--what", "candidates").error()

    assert error == f"{run.ledger}: the rows of completion c do not fit its tokens"


def test_text_is_decoded_by_the_tokenizer_of_the_run(finished_run: RunFolder) -> None:
    pivots = [json.loads(line) for line in finished_run.pivots.read_text().splitlines()]
    wanted = {(p["completion_id"], p["position"]): (p["token"], p["chosen"], p["rejected"]) for p in pivots}

    found = [json.loads(line) for line in export(finished_run, "--text").out.splitlines()]

    assert {
        (r["completion_id"], r["position"]): (r["text"], r["chosen"], r["rejected"]) for r in found
    } == wanted


@pytest.mark.parametrize("what", WHATS)
def test_all_formats_hold_the_same_rows(finished_run: RunFolder, tmp_path: Path, what: str) -> None:
    lines = exported(finished_run, what)

    for suffix in ("jsonl", "csv", "parquet"):
        ended = export(finished_run, "--what", what, "--out", str(tmp_path / f"table.{suffix}"))
        assert (ended.code, ended.out, ended.err) == (0, "", "")

    assert [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()] == lines
    assert pq.read_table(tmp_path / "table.parquet").to_pylist(maps_as_pydicts="strict") == lines
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    assert [*rows[0]] == [*lines[0]]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_exported_problems_are_a_data_set_with_the_same_ids(
    finished_run: RunFolder, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"problems.{suffix}"
    export(finished_run, "--what", "problems", "--out", str(path))

    with finished_run.read() as ledger:
        assert [problem.id for problem in load_problems(path)] == [
            problem.id for problem in ledger.problems()
        ]


def test_csv_goes_to_standard_output_too(finished_run: RunFolder) -> None:
    ended = export(finished_run, "--what", "problems", "--format", "csv")

    assert ended.out.splitlines()[0] == "id,question,answer,fields"
    assert len(ended.out.splitlines()) == 13


def test_a_run_that_is_being_written_can_be_exported(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Ledger.open(run.ledger, {"search.tau": 0.2}):
        assert [exported(run, what) for what in WHATS] == [[]] * 5
        assert export(run, "--what", "pivots", "--out", str(tmp_path / "pivots.parquet")).code == 0

    assert pq.read_table(tmp_path / "pivots.parquet").num_rows == 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    with os.fdopen(writing, "w") as out, redirect_stdout(out):
        _print("a line" for _ in range(10_000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--what", "tokens"],
            "unknown table 'tokens'; expected pivots, candidates, completions, rollouts, problems",
        ),
        (["--format", "xml"], "unknown format 'xml'; expected jsonl, csv, parquet"),
        (["--format", "parquet"], "Parquet is not for standard output; name a file with --out"),
        (
            ["--out", "table.txt"],
            "table.txt: its name says no format; name one with --format: jsonl, csv, parquet",
        ),
        (["--out", "nowhere/table.csv"], "nowhere/table.csv can't be written: No such file or directory"),
        (["--format", "csv", "--out", "."], ". can't be written: Is a directory"),
        (["--out", "nowhere/t.parquet"], "nowhere/t.parquet can't be written: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_clear_line(finished_run: RunFolder, options: list[str], message: str) -> None:
    assert export(finished_run, *options).error() == message


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    assert run_pts("export", str(tmp_path)).error().startswith(f"{tmp_path}: no run here")


def test_a_link_stays_and_what_it_leads_to_is_written(finished_run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(Path("there", "table.csv"))

    for _ in range(2):  # the link leads nowhere at first
        assert export(finished_run, "--what", "problems", "--out", str(link)).code == 0
        assert link.readlink() == Path("there", "table.csv")
        assert (tmp_path / "there" / "table.csv").read_text().startswith("id,question,answer,fields\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.csv", "table.csv", "there"]


def test_a_pipe_is_written_to_and_stays(finished_run: RunFolder, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_text)
        ended = export(finished_run, "--what", "problems", "--out", str(pipe))

    assert (ended.code, pipe.is_fifo()) == (0, True)
    assert [json.loads(line) for line in read.result().splitlines()] == exported(finished_run, "problems")
    assert [*tmp_path.iterdir()] == [pipe]


def test_permissions_of_a_file_stay_and_a_new_one_has_those_of_the_umask(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    old, new, umask = tmp_path / "old.csv", tmp_path / "new.csv", os.umask(0o027)
    try:
        old.touch(0o604)
        old.chmod(0o604)
        for path in (old, new):
            assert export(finished_run, "--what", "problems", "--out", str(path)).code == 0
    finally:
        os.umask(umask)

    assert [path.stat().st_mode & 0o777 for path in (old, new)] == [0o604, 0o640]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_file_is_as_before_when_its_rows_can_not_all_be_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("mine")

    def broken() -> Any:
        yield row_of(Key("a", 1))
        raise LedgerError("the ledger is damaged")

    table = RowTable(columns_of(Key), broken())
    with pytest.raises(LedgerError, match="the ledger is damaged"):
        write_parquet(table, path) if name.endswith("parquet") else write_atomically(
            path, lines_of(table, "csv")
        )

    assert path.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [path]
