import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.errors import DataError

# Made-up rows in GSM8K's layout.
WORKED_ROWS = [
    {"question": "Ana has 3 nets of 4 lemons. How many?", "answer": "3*4=<<3*4=12>>12 lemons\n#### 12"},
    {"question": "A book costs $900 and a pen $150.", "answer": "900+150=$<<900+150=1050>>1050\n#### 1,050"},
    {"question": "Zoë\u2019s train is 5 minutes late, twice.", "answer": "5*2=<<5*2=10>>10\n#### 10"},
]
WriteLines = Callable[..., Path]


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    def write(*lines: str | bytes | dict[str, object]) -> Path:
        path = tmp_path / "rows.jsonl"
        encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in encoded))
        return path

    return write


def problems_of(error: pytest.ExceptionInfo[DataError]) -> tuple[str, ...]:
    return error.value.problems


def test_rows_with_worked_answers_are_read_as_they_are(write_lines: WriteLines) -> None:
    problems = load_problems(write_lines(*WORKED_ROWS))

    assert [(problem.question, problem.answer) for problem in problems] == [
        (row["question"], row["answer"]) for row in WORKED_ROWS
    ]


@pytest.mark.parametrize("question_field", ["question", "problem", "prompt", "query", "input"])
@pytest.mark.parametrize("answer_field", ["answer", "solution", "target", "label", "final_answer"])
def test_fields_with_usual_names_are_found(
    write_lines: WriteLines, question_field: str, answer_field: str
) -> None:
    (problem,) = load_problems(write_lines({"id": 1, question_field: "Q", answer_field: "A"}))

    assert (problem.question, problem.answer, problem.fields) == ("Q", "A", {"id": "1"})


def test_named_fields_go_before_usual_names(write_lines: WriteLines) -> None:
    path = write_lines({"question": "no", "answer": "no", "text": "Q", "gold": "A"})

    (problem,) = load_problems(path, DataOptions(question_field="text", answer_field="gold"))

    assert (problem.question, problem.answer) == ("Q", "A")
    assert problem.fields == {"question": "no", "answer": "no"}


def test_without_a_usual_name_the_fields_are_listed(write_lines: WriteLines) -> None:
    with pytest.raises(
        DataError, match=r"question field with --question-field, or .* The fields are: text, answer$"
    ):
        load_problems(write_lines({"text": "Q", "answer": "A"}))


def test_a_named_field_that_no_row_has_is_one_problem(write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match="no field is named 'golf'") as error:
        load_problems(write_lines(*WORKED_ROWS), DataOptions(answer_field="golf"))

    assert len(problems_of(error)) == 1


def test_an_id_is_the_head_of_the_sha256_of_question_and_answer(write_lines: WriteLines) -> None:
    (problem,) = load_problems(write_lines({"question": "Q", "answer": "\u00c5"}))

    assert problem.id == hashlib.sha256('["Q", "\u00c5"]'.encode()).hexdigest()[:16]


def test_the_same_row_has_the_same_id_in_another_file_under_other_names(write_lines: WriteLines) -> None:
    (first,) = load_problems(write_lines({"question": "Q", "answer": "A"}))
    (second,) = load_problems(write_lines({"n": 1, "input": "Q", "label": "A"}))

    assert second.id == first.id


def test_numbers_become_text(write_lines: WriteLines) -> None:
    (problem,) = load_problems(write_lines({"question": 12, "answer": 2.5}))

    assert (problem.question, problem.answer) == ("12", "2.5")


def test_every_bad_line_is_reported_at_once(write_lines: WriteLines) -> None:
    path = write_lines(
        {"question": "Q", "answer": "A"},
        "{not json",
        {"question": "Q2"},
        "",
        {"question": " ", "answer": "A"},
        {"question": ["Q"], "answer": "A"},
        b'{"question": "\xff", "answer": "A"}',
        {"question": "Q", "answer": "A"},
        "[1]",
        '{"question": "Q", "answer": NaN}',
        {"question": "Q", "answer": True},
        r'{"question": "\ud800", "answer": "A"}',
        "[" * 200_000,
    )

    with pytest.raises(DataError) as error:
        load_problems(path)

    assert problems_of(error)[:-1] == (
        "line 2: not JSON (Expecting property name enclosed in double quotes, column 2)",
        "line 3: no field 'answer'",
        "line 5: field 'question' is empty",
        "line 6: field 'question' must be text or a number, not list ['Q']",
        "line 7: not UTF-8 (byte 15 of the line)",
        "line 8: repeats line 1",
        "line 9: not a JSON object",
        "line 10: NaN is not a number",
        "line 11: field 'answer' must be text or a number, not bool True",
        "line 12: field 'question' holds half of a surrogate pair, which is no character",
    )
    assert problems_of(error)[-1].startswith("line 13: not JSON")


def test_the_message_shows_twenty_problems_and_counts_the_rest(write_lines: WriteLines) -> None:
    with pytest.raises(DataError) as error:
        load_problems(write_lines({"question": "Q", "answer": "A"}, *["x"] * 25))

    assert len(problems_of(error)) == 25
    assert str(error.value).count("line ") == 20
    assert str(error.value).endswith("and 5 more")


def test_bad_rows_are_skipped_with_a_warning_when_asked(
    write_lines: WriteLines, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines("x", {"question": "Q", "answer": "A"})

    with caplog.at_level(logging.WARNING):
        (problem,) = load_problems(path, DataOptions(skip_bad_rows=True))

    assert problem.question == "Q"
    assert "skipped 1 bad rows: line 1: not JSON" in caplog.text


def test_nothing_but_bad_rows_is_an_error_even_when_they_may_be_skipped(write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match="line 1: not JSON"):
        load_problems(write_lines("x"), DataOptions(skip_bad_rows=True))


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(write_lines: WriteLines) -> None:
    (problem,) = load_problems(write_lines(b'\xef\xbb\xbf{"question": "Q", "answer": "A"}\r', b"\r", b""))

    assert problem.answer == "A"


def test_a_line_separator_inside_a_string_does_not_end_the_line(write_lines: WriteLines) -> None:
    (problem,) = load_problems(write_lines('{"question": "a\u2028b", "answer": "A"}'))

    assert problem.question == "a\u2028b"


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"^nowhere/rows\.jsonl: there is no such file$"):
        load_problems("nowhere/rows.jsonl")


def test_an_empty_file_is_an_error(write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match="it is empty"):
        load_problems(write_lines("", ""))


def test_an_unknown_demo_split_lists_the_splits() -> None:
    with pytest.raises(DataError, match="the splits are train, validation, test"):
        load_problems("demo:dev")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_demo_splits_are_loaded(split: str) -> None:
    problems = load_problems(f"demo:{split}", DataOptions(limit=5))

    assert [sorted(problem.fields) for problem in problems] == [["form", "id"]] * 5


def test_shuffling_orders_by_seed_and_content_alone(write_lines: WriteLines) -> None:
    rows = [{"question": f"Q{number}", "answer": "A"} for number in range(30)]
    shuffled = load_problems(write_lines(*rows), DataOptions(shuffle_seed=1))

    assert load_problems(write_lines(*reversed(rows)), DataOptions(shuffle_seed=1)) == shuffled
    assert load_problems(write_lines(*rows), DataOptions(shuffle_seed=2)) != shuffled
    assert load_problems(write_lines(*rows), DataOptions(shuffle_seed=1, limit=4)) == shuffled[:4]


def test_a_limit_does_not_hide_bad_rows_behind_it(write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match="line 2"):
        load_problems(write_lines({"question": "Q", "answer": "A"}, "x"), DataOptions(limit=1))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1, not 0"):
        DataOptions(limit=0)


def test_a_hub_data_set_is_loaded_by_split(tmp_path: Path) -> None:
    # `datasets` takes a folder of that name for the data set, so nothing is fetched.
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps(WORKED_ROWS[0]))
    (folder / "train.jsonl").write_text(json.dumps(WORKED_ROWS[1]))
    code = (
        "from steering_pts.data import DataOptions, load_problems\n"
        "print(load_problems('hf:owner/name')[0].question)\n"
        "print(load_problems('hf:owner/name', DataOptions(split='train'))[0].question)\n"
        "try: load_problems('hf:owner/name', DataOptions(split='dev'))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "try: load_problems('owner/other')\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    questions = [WORKED_ROWS[0]["question"], WORKED_ROWS[1]["question"]]
    assert printed.stdout.splitlines() == [*questions, "DataError", "DataError"]


@settings(deadline=None)
@given(question=st.text(min_size=1), answer=st.text(min_size=1))
def test_any_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, question: str, answer: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"question": question, "answer": answer}))

    if question.strip() and answer.strip():
        assert load_problems(path)[0] == Problem(load_problems(path)[0].id, question, answer, {})
    else:
        with pytest.raises(DataError, match="is empty"):
            load_problems(path)
