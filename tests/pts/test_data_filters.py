"""Conditions, lists of ids, and the order in which they, the shuffle and the limit apply."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.data import Condition, DataOptions, load_problems, parse_conditions, problem_id, read_ids
from steering_pts.errors import DataError

ROW = {"level": 3, "kind": "sum", "price": "12.50", "flag": True, "tags": ["a", "b"], "nothing": None}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"question": f"Q{n}", "answer": "A", "level": n % 5, "kind": ["even", "odd"][n % 2]}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def questions(path: Path, *where: str, **options: object) -> list[str]:
    return [p.question for p in load_problems(path, DataOptions(where=parse_conditions(where), **options))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("level=3", True),
        ("level=3.0", True),
        ("level = 3", True),
        ("level=4", False),
        ("level!=4", True),
        ("level!=3.00", False),
        ("kind=sum", True),
        ("kind=Sum", False),
        ("kind!=sum", False),
        ("kind~^s.m$", True),
        ("kind~^u", False),
        ("kind~u", True),
        ("price>=12.5", True),
        ("price>12.5", False),
        ("price<1e3", True),
        ("level<=3", True),
        ("level<-3", False),
        ("kind<3", False),
        ("flag=True", True),
        ("flag=true", True),
        ("flag!=false", True),
        ('tags=["a", "b"]', True),
        ('tags~"b"', True),
        ("nothing=None", False),
        ("nothing!=1", False),
        ("absent!=1", False),
        ("kind!=a=b", True),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    assert Condition.parse(text).holds(ROW) is holds


@given(
    left=st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6),
    right=st.integers(-(10**6), 10**6),
)
def test_numbers_are_compared_exactly(left: Decimal, right: int) -> None:
    row = {"x": str(left)}

    found = {op: Condition("x", op, str(right)).holds(row) for op in ("=", "!=", "<", "<=", ">", ">=")}

    assert found == {
        "=": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }


fields = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(field=fields, operator=st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), value=st.integers())
def test_a_condition_is_read_as_it_is_written(field: str, operator: str, value: int) -> None:
    condition = Condition(field, operator, str(value))

    assert Condition.parse(str(condition)) == condition


def test_all_conditions_that_are_none_are_told_at_once() -> None:
    with pytest.raises(DataError) as error:
        parse_conditions(["level", "=3", "kind~(", "level<high", "level=1"])

    assert str(error.value).splitlines() == [
        "--where:",
        "  'level': expected FIELD=VALUE, FIELD!=VALUE, FIELD~REGEX, or FIELD<=NUMBER with <, <=, >, >=",
        "  '=3': expected FIELD=VALUE, FIELD!=VALUE, FIELD~REGEX, or FIELD<=NUMBER with <, <=, >, >=",
        "  'kind~(': '(' is no regular expression (missing ), unterminated subpattern at position 0)",
        "  'level<high': < needs a number, not 'high'",
    ]


def test_every_condition_must_hold(rows: Path) -> None:
    assert questions(rows, "level>=3", "kind=odd") == ["Q3", "Q9", "Q13", "Q19"]


def test_conditions_apply_before_the_limit_and_the_shuffle(rows: Path) -> None:
    assert questions(rows, "level=1", limit=2) == ["Q1", "Q6"]
    shuffled = questions(rows, "level=1", shuffle_seed=4)
    assert sorted(shuffled) == ["Q1", "Q11", "Q16", "Q6"]
    assert questions(rows, "level=1", shuffle_seed=4, limit=2) == shuffled[:2]


def test_question_and_answer_can_be_conditions_too(rows: Path) -> None:
    assert questions(rows, "question~^Q1.$", "answer=A", "level=0") == ["Q10", "Q15"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_condition_on_a_field_that_no_row_has_lists_the_fields(
    tmp_path: Path, rows: Path, name: str
) -> None:
    (tmp_path / "rows.csv").write_text("question,answer,level,kind\nQ,A,1,2\n")

    with pytest.raises(DataError) as error:
        questions(tmp_path / name, "levl=1", "kind=odd", "knd=2")

    assert error.value.problems == (
        "no field 'levl' for --where levl=1; one of: question, answer, level, kind",
        "no field 'knd' for --where knd=2; one of: question, answer, level, kind",
    )


def test_a_field_of_a_late_row_alone_is_known(rows: Path) -> None:
    with rows.open("a") as file:
        file.writelines(json.dumps({"question": f"R{n}", "answer": "A"}) + "\n" for n in range(1100))
        file.write(json.dumps({"question": "late", "answer": "A", "note": "x"}))

    assert questions(rows, "note=x") == ["late"]


def test_conditions_that_no_row_satisfies_are_named(rows: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 20 rows satisfies level=9 and kind=odd$"):
        questions(rows, "level=9", "kind=odd")


def test_a_row_that_conditions_leave_out_need_not_be_sound(rows: Path) -> None:
    with rows.open("a") as file:
        file.write(json.dumps({"question": "Q20", "level": 0, "kind": "unlabelled"}) + "\n")
        file.write(json.dumps({"question": "Q1", "answer": "A", "kind": "repeated"}))

    assert len(questions(rows, "kind~^(even|odd)$")) == 20
    assert questions(rows, "kind~^(even|odd)$", ids=frozenset({problem_id("Q3", "A")})) == ["Q3"]
    with pytest.raises(DataError, match="line 21: no field 'answer'\n  line 22: repeats line 2"):
        questions(rows)


def test_a_line_that_can_not_be_read_is_a_fault_whatever_the_conditions(rows: Path) -> None:
    with rows.open("a") as file:
        file.write("{")

    with pytest.raises(DataError, match="line 21: not JSON"):
        questions(rows, "level=1")


# --- ids --------------------------------------------------------------------------------------------------------------


def test_only_the_ids_in_a_file_are_used(rows: Path, tmp_path: Path) -> None:
    every = load_problems(rows)
    (tmp_path / "ids.txt").write_text(f"\ufeff{every[7].id}\r\n\r\n  {every[2].id}\n", encoding="utf-8")

    chosen = load_problems(rows, DataOptions(ids=read_ids(tmp_path / "ids.txt")))

    assert chosen == [every[2], every[7]]
    assert load_problems(rows, DataOptions(ids=read_ids(tmp_path / "ids.txt"), limit=1)) == [every[2]]


def test_ids_and_conditions_must_both_hold(rows: Path) -> None:
    every = load_problems(rows)
    ids = frozenset({every[2].id, every[7].id})

    assert questions(rows, "kind=odd", ids=ids) == ["Q7"]
    with pytest.raises(DataError, match="none of its 20 rows satisfies level=4 among those ids"):
        questions(rows, "level=4", ids=ids)


def test_ids_that_are_not_there_are_listed(rows: Path) -> None:
    known = load_problems(rows)[0].id

    with pytest.raises(DataError) as error:
        questions(rows, ids=frozenset({known, "0" * 16, "f" * 16}))

    assert error.value.problems == (f"no problem has the id {'0' * 16}", f"no problem has the id {'f' * 16}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; it must hold one problem id on each line"),
        (b"0123456789abcdef\nQ1\n", "line 2: 'Q1' is no problem id (16 hexadecimal digits)"),
        (b"\xff", "it is not UTF-8 (byte 1)"),
    ],
)
def test_a_file_that_holds_no_ids_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(content)

    with pytest.raises(DataError) as error:
        read_ids(path)

    assert str(error.value) == f"{path}: {message}"


def test_a_file_of_ids_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_ids(tmp_path / "ids.txt")
    with pytest.raises(DataError, match="it can't be read: Is a directory"):
        read_ids(tmp_path)
