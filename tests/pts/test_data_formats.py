"""Files of every format: the same rows are the same problems, and what is not a data file is said in one message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.errors import DataError

Rows = Sequence[Mapping[str, object]]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: Rows, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(
            {n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()} for row in rows
        )


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=2)


WRITERS: Mapping[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "parquet": write_parquet,
}
ROWS = [
    {"question": "Ana has 3 nets\nof 4 lemons, \u201cfresh\u201d.", "answer": "12", "steps": [3, 4]},
    {"question": 'He said "no; never", twice.', "answer": "2.5", "steps": [1, 2]},
    {"question": "\u00c5ngstr\u00f6m\u2028\U0001f34b\ttab", "answer": "12", "steps": [1]},
]


def error_of(path: Path, options: DataOptions | None = None) -> str:
    with pytest.raises(DataError) as error:
        load_problems(path, options)
    return str(error.value).removeprefix(f"{path}:").strip()


# --- the same rows in every format ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_rows_are_the_same_problems_in_every_format(tmp_path: Path, format: str) -> None:
    write_jsonl(tmp_path / "reference.jsonl", ROWS)
    path = tmp_path / f"rows.{format}"
    WRITERS[format](path, ROWS)

    assert load_problems(path) == load_problems(tmp_path / "reference.jsonl")


# Quoted CSV and JSON can hold any text; Parquet can't hold half of a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
answers = texts | st.integers(-(2**63), 2**63 - 1).map(str)
tables = st.lists(
    st.fixed_dictionaries({"question": texts, "answer": answers, "note": texts}),
    min_size=1,
    max_size=4,
    unique_by=lambda row: (row["question"], row["answer"]),
)


@settings(max_examples=40)
@given(rows=tables)
def test_any_rows_come_back_from_every_format(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> None:
    folder = tmp_path_factory.getbasetemp()
    wanted = [(row["question"], row["answer"], {"note": row["note"]}) for row in rows]

    for suffix, write in WRITERS.items():
        path = folder / f"any-rows.{suffix}"
        write(path, rows)
        found = load_problems(path, DataOptions(layout="plain"))

        assert [(p.question, p.answer, dict(p.fields)) for p in found] == wanted, suffix


@settings(max_examples=100)
@given(number=st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_has_the_id_of_its_text(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [{"question": "Q", "answer": number}]

    ids = set()
    for suffix, write in WRITERS.items():
        write(folder / f"number.{suffix}", rows)
        ids.add(load_problems(folder / f"number.{suffix}")[0].id)
    write_jsonl(folder / "text.jsonl", [{"question": "Q", "answer": str(number)}])

    assert ids == {load_problems(folder / "text.jsonl")[0].id}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_text_may_be_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](path, ROWS)
    packed = tmp_path / f"rows.{suffix}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))

    assert load_problems(packed) == load_problems(path)


def test_a_named_format_goes_before_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    write_csv(path, ROWS)

    assert len(load_problems(path, DataOptions(format="csv"))) == 3


def test_a_file_whose_name_says_no_format_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    write_csv(path, ROWS)

    assert error_of(path) == (
        "its name ends in none of .jsonl, .ndjson, .json, .csv, .tsv, .parquet (or one of them and .gz); "
        "name the format with --format"
    )


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("-1e999", "-1e999 is too large for a number; write it as text"),
        ("7" * 5000, "a number of 5,000 digits is too long; write it as text"),
        ("Infinity", "Infinity is not a number"),
    ],
)
def test_a_number_that_can_not_be_held_is_a_bad_row(
    tmp_path: Path, name: str, number: str, message: str
) -> None:
    path = tmp_path / name
    row = f'{{"question": "R", "answer": "2", "more": [{number}]}}'
    lines = ['{"question": "Q", "answer": "1"}', row, '{"question": "S", "answer": 1e300}']
    path.write_text("\n".join(lines) if name == "rows.jsonl" else "[" + ",\n".join(lines) + "]")

    assert error_of(path) == f"line 2: {message}"


# --- JSON lists -------------------------------------------------------------------------------------------------------


def test_bad_items_of_a_list_are_named_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(
        '[{"question": "Q", "answer": 1},\n3,\n\n{"question":\n"R", "answer": NaN},\n{"question": "S"}]'
    )

    assert error_of(path) == (
        "line 2: not a JSON object\n  line 4: NaN is not a number\n  line 6: no field 'answer'"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"question": "Q"',
            "not a list of JSON objects (Expecting ',' delimiter: line 1 column 18 (char 17))",
        ),
        (
            '[{"question": "Q"}',
            "not a list of JSON objects (Expecting ',' or ']': line 1 column 19 (char 18))",
        ),
        ('[{"a": 1}] x', "not a list of JSON objects (Extra data: line 1 column 12 (char 11))"),
        ('[{"a": 1},\n]', "not a list of JSON objects (Expecting value: line 2 column 1 (char 11))"),
        ("[]", "it is empty; it must hold a list of JSON objects"),
        (
            '{\n "question": "Q"\n}',
            "it is one object over several lines; it must hold one on each line, or a list of them",
        ),
    ],
)
def test_a_list_that_is_none_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)

    assert error_of(path) == message


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.json", ROWS)

    assert len(load_problems(tmp_path / "rows.json")) == 3


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_the_one_that_cuts_the_header(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        delimiter.join(["question", "answer", "a note"]) + "\n" + delimiter.join(["Q", "A", "N"]) + "\n"
    )

    assert load_problems(path) == [Problem(load_problems(path)[0].id, "Q", "A", {"a note": "N"})]


def test_ragged_and_unreadable_records_are_named_by_their_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"\xef\xbb\xbfquestion,answer\r\n"
        b'"two\r\nlines",1\r\n'
        b"only one\r\n"
        b"\r\n"
        b"a,b,c\r\n"
        b'"quoted" badly,2\r\n'
        b"\xff,3\r\n"
        b" ,4\r\n"
        b"good,5\r\n"
        b'"never closed,6\r\n'
    )

    assert error_of(path).split("\n  ") == [
        "line 4: 1 values where the header names 2",
        "line 6: 3 values where the header names 2",
        "line 7: not CSV (',' expected after '\"')",
        "line 8: not UTF-8 (field 'question')",
        "line 9: field 'question' is empty",
        "line 11: not CSV (unexpected end of data)",
    ]
    problems = load_problems(path, DataOptions(skip_bad_rows=True))
    assert [problem.question for problem in problems] == ["two\r\nlines", "good"]


def test_a_file_without_a_header_says_that_it_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("What is 2 + 2?,4\nWhat is 2 + 3?,5\n")

    assert error_of(path).endswith(
        "The fields are: What is 2 + 2?, 4 (the first line of a CSV file must name its columns)"
    )


def test_a_column_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",question,answer\n7,Q,A\n")

    assert load_problems(path)[0].fields == {"column 1": "7"}


def test_a_name_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,question\nQ,A,R\n")

    assert error_of(path) == "line 1: the header names 'question' 2 times"


def test_a_header_alone_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n")

    assert error_of(path) == "it is empty; it must hold a header and at least one row"


def test_a_field_may_be_longer_than_the_librarys_limit(tmp_path: Path) -> None:
    long = "x" * 200_000
    write_csv(tmp_path / "rows.csv", [{"question": long, "answer": "A"}])

    assert load_problems(tmp_path / "rows.csv")[0].question == long


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_columns_of_every_type_become_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question": ["Q"],
            "answer": pa.array([0.1], pa.float32()),
            "price": pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
            "nested": [{"label": ["A"], "text": ["\u00e9"]}],
            "picture": [b"\x00\x01"],
            "inside": [{"bytes": b"\x00"}],
            "day": pa.array([0], pa.date32()),
            "flag": [True],
            "nothing": pa.array([None], pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    (problem,) = load_problems(tmp_path / "rows.parquet")

    assert problem.answer == "0.1"
    assert problem.fields == {
        "price": "1.50",
        "nested": '{"label": ["A"], "text": ["\u00e9"]}',
        "picture": "<2 bytes>",
        "inside": '{"bytes": "<1 bytes>"}',
        "day": "1970-01-01",
        "flag": "true",
    }


def test_bad_rows_of_parquet_are_named_by_their_numbers_across_row_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", [*ROWS, {"question": None, "answer": "1"}, ROWS[0]])

    assert error_of(tmp_path / "rows.parquet") == "row 4: no field 'question'\n  row 5: repeats row 1"


def test_a_column_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["Q"])] * 2, names=["question", "question"])
    pq.write_table(table, tmp_path / "rows.parquet")

    assert error_of(tmp_path / "rows.parquet") == "it names the column 'question' twice"


def test_a_parquet_file_that_is_cut_off_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-10])

    assert error_of(path).startswith("it can't be read: ")
    assert "\n" not in error_of(path)


# --- what is no data file ---------------------------------------------------------------------------------------------


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": ["Q"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", parquet_bytes(), "it is a Parquet file; name it .parquet, or pass --format parquet"),
        ("a.csv", parquet_bytes(), "it is a Parquet file; name it .parquet, or pass --format parquet"),
        ("a.parquet", b"question,answer\n", "it is not a Parquet file: it begins with b'ques'"),
        ("a.parquet", b"", "it is empty; it must be a Parquet file"),
        ("a.csv", b"", "it is empty; it must hold a header and at least one row"),
        ("a.json", b" \n", "it is empty; it must hold a list of JSON objects"),
        (
            "a.csv",
            b'{"question": "Q", "answer": "A"}\n',
            "it is JSON; name it .jsonl or .json, or pass --format",
        ),
        (
            "a.jsonl",
            b'[\n{"question": "Q", "answer": "A"}]',
            "it is a list, not one object on each line; name it .json, or pass --format json",
        ),
        ("a.jsonl", '{"question"'.encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
        (
            "a.csv",
            "question,answer".encode("utf-16-le"),
            "it is not UTF-8 text (perhaps UTF-16); save it as UTF-8",
        ),
        ("a.json", b'[{"question": "\xff"}]', "not UTF-8 (byte 16)"),
        ("a.csv", b"question,\xff\nQ,A\n", "line 1: the header is not UTF-8"),
        ("a.csv", b"PK\x03\x04xl/", "it is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
        ("a.jsonl", b"<!DOCTYPE html>", "it is a web page"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a Git LFS pointer, not the file that it stands for; fetch that with git lfs pull",
        ),
        ("a.jsonl.gz", b"{}", "its name ends in .gz, but it is not compressed with gzip"),
        (
            "a.jsonl.gz",
            gzip.compress(os.urandom(5000).hex().encode())[:-500],
            "it is cut off: the compressed data end too early",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"question,answer\nQ,A\n", mtime=0)[:-8] + b"\x00" * 8,
            "it is damaged: CRC check failed",
        ),
    ],
)
def test_what_is_no_such_file_is_one_clear_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    found = error_of(path)

    assert found.startswith(message)
    assert "\n" not in found


def test_a_file_that_can_not_be_read_gives_the_systems_reason(tmp_path: Path) -> None:
    # Not by permissions: whoever runs the tests as root may read everything.
    (tmp_path / "file").write_text("")

    assert error_of(tmp_path / "file" / "rows.jsonl") == "it can't be read: Not a directory"
    assert error_of(tmp_path / f"{'x' * 300}.jsonl") == "it can't be read: File name too long"


def test_no_more_than_the_limit_is_kept_of_a_long_file(tmp_path: Path) -> None:
    rows = [{"question": f"Q{number}", "answer": "A"} for number in range(3000)]
    write_csv(tmp_path / "rows.csv", rows)
    write_parquet(tmp_path / "rows.parquet", rows)

    for name in ("rows.csv", "rows.parquet"):
        assert [p.question for p in load_problems(tmp_path / name, DataOptions(limit=3))] == [
            "Q0",
            "Q1",
            "Q2",
        ]
        every = load_problems(tmp_path / name, DataOptions(shuffle_seed=3))
        assert load_problems(tmp_path / name, DataOptions(shuffle_seed=3, limit=7)) == every[:7]
