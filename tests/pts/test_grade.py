from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from steering_pts.data import Problem, load_problems
from steering_pts.errors import DataError
from steering_pts.grading.answers import AnswerFields, read_answers
from steering_pts.grading.confusion import Confusion, Rate
from steering_pts.oracles.base import Verdict
from tests.support.pts import Ended, run_pts

Write = Callable[..., Path]
C, N, X = Verdict.CORRECT, Verdict.INCORRECT, Verdict.CENSORED


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSON lines."""

    def to(*rows: object, name: str = "answers.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return to


def row(completion: object = "#### 18", answer: str = "18", **more: object) -> dict[str, object]:
    return {"question": "How many?", "answer": answer, "completion": completion, **more}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion", "response", "output", "generated", "prediction"])
def test_completions_are_found_by_their_usual_names(write: Write, name: str) -> None:
    path = write({"question": "Q", "answer": "18", name: "It is 18."})

    (answer,) = read_answers(path, AnswerFields()).answers
    assert (answer.completion, answer.problem.question, answer.problem.answer) == ("It is 18.", "Q", "18")


def test_a_problem_has_the_id_that_its_data_set_gives_it(write: Write) -> None:
    path = write(row())

    (answer,) = read_answers(path, AnswerFields()).answers
    (problem,) = load_problems(path)
    assert answer.problem.id == problem.id


def test_many_completions_may_answer_one_question(write: Write) -> None:
    assert len(read_answers(write(row("17"), row("18"), row("18")), AnswerFields()).answers) == 3


def test_other_fields_go_with_the_problem_but_not_what_is_graded(write: Write) -> None:
    (answer,) = read_answers(write(row(tags=["a", "b"], level="3", correct=True)), AnswerFields()).answers

    assert answer.problem.fields == {"tags": '["a", "b"]', "level": "3"}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, C),
        (False, N),
        (1, C),
        (0, N),
        (1.0, C),
        ("1", C),
        ("correct", C),
        ("Incorrect", N),
        ("censored", X),
        ("true", C),
        ("FALSE", N),
        (None, None),
        ("", None),
    ],
)
def test_labels_are_read_in_their_usual_forms(write: Write, value: object, label: Verdict | None) -> None:
    (answer,) = read_answers(write(row(is_correct=value)), AnswerFields()).answers

    assert answer.label is label


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "Q", "choices": {"label": ["1", "2"], "text": ["one", "two"]}, "answerKey": "2"},
        {"prompt": "def f():", "test": "def check(f):\n    assert f()", "entry_point": "f"},
        {"text": "Write f.", "code": "def f(): pass", "test_list": ["assert f()"]},
        {"question": "Is it?", "passage": "It is.", "answer": True},
        {"problem": "1 + 1?", "solution": r"It is \boxed{2}.", "answer": "2"},
    ],
)
def test_a_known_layout_is_read_as_in_a_data_set(write: Write, fields: dict[str, object]) -> None:
    (problem,) = load_problems(write(fields))

    (answer,) = read_answers(write({**fields, "completion": "C", "correct": True}), AnswerFields()).answers

    assert (answer.problem, answer.label) == (problem, C)


def test_a_layout_may_be_named(write: Write) -> None:
    path = write(row(answer="Paris", choices=["London", "Paris"]))

    with pytest.raises(DataError, match="line 1: field 'answer' is 'Paris'; expected 0 to 1, or A to B"):
        read_answers(path, AnswerFields())
    (answer,) = read_answers(path, AnswerFields(layout="plain")).answers
    assert answer.problem.answer == "Paris"


@pytest.mark.parametrize("name", ["answers.csv", "answers.json", "answers.txt"])
def test_answers_may_be_in_any_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    columns = ["question", "answer", "completion", "correct", "truncated"]
    values = ["Q", "18", "It is 18.", "true", "true"]
    one = json.dumps(dict(zip(columns, values, strict=True)))
    path.write_text(
        {".csv": f"{','.join(columns)}\n{','.join(values)}\n", ".json": f"[{one}]"}.get(path.suffix, one)
    )

    (answer,) = read_answers(path, AnswerFields()).answers
    assert (answer.completion, answer.label, answer.truncated) == ("It is 18.", C, True)


def test_what_is_called_correct_is_no_label_where_it_holds_answers(write: Write) -> None:
    rows = [
        {"question": "Q", "correct": right, "is_correct": 1, "completion": "18"} for right in ("18", "1", "7")
    ]
    path = write(*rows)

    found = read_answers(path, AnswerFields(answer="correct"))
    assert [answer.problem.answer for answer in found.answers] == ["18", "1", "7"]
    assert found.label_field == "is_correct"
    assert read_answers(write(row(correct="18")), AnswerFields()).label_field is None


def test_an_empty_name_says_that_there_are_no_labels(write: Write) -> None:
    assert read_answers(write(row(correct=True)), AnswerFields(label="")).label_field is None


def test_label_is_an_answer_unless_it_is_named(write: Write) -> None:
    path = write({"question": "Q", "label": "18", "completion": "18"})
    named = write({"question": "Q", "target": "18", "label": 1, "completion": "18"}, name="named.jsonl")

    found = read_answers(path, AnswerFields())
    assert (found.answers[0].problem.answer, found.label_field) == ("18", None)
    found = read_answers(named, AnswerFields(label="label"))
    assert (found.answers[0].problem.answer, found.answers[0].label) == ("18", C)


@pytest.mark.parametrize("more", [{"truncated": True}, {"finish_reason": "length"}])
def test_a_row_may_say_that_it_was_cut_off(write: Write, more: dict[str, object]) -> None:
    answers = read_answers(write(row(**more), row()), AnswerFields()).answers

    assert [answer.truncated for answer in answers] == [True, False]


def test_rows_refer_to_a_data_set_by_its_own_ids_or_by_ours(write: Write) -> None:
    problems = [
        Problem("0123", "Q", "18", {"task_id": "t/1"}),
        Problem("4567", "R", "19", {"task_id": "t/2"}),
    ]
    path = write({"id": "4567", "completion": "19"}, {"id": "t/1", "completion": "18"})

    answers = read_answers(path, AnswerFields(), problems).answers
    assert [answer.problem.id for answer in answers] == ["4567", "0123"]


def test_an_id_that_two_problems_share_is_refused(write: Write) -> None:
    problems = [Problem("1", "Q", "1", {"id": "x"}), Problem("2", "R", "2", {"id": "x"})]

    with pytest.raises(DataError, match="line 1: no problem of the data set has the id 'x', or several have"):
        read_answers(write({"id": "x", "completion": "1"}), AnswerFields(), problems)


def test_bad_rows_are_all_named_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        json.dumps(row(correct=True)),
        "{",
        "[]",
        json.dumps(row(completion=3)),
        "",
        json.dumps(row(correct="maybe")),
    ]
    path.write_text("\n".join([*lines, json.dumps(row(answer=""))]), encoding="utf-8")

    with pytest.raises(DataError) as error:
        read_answers(path, AnswerFields())
    assert error.value.problems == (
        "line 2: not JSON (Expecting property name enclosed in double quotes, column 2)",
        "line 3: not a JSON object",
        "line 4: field 'completion' must be text, not 3",
        "line 6: field 'correct' is 'maybe'; expected true or false, 1 or 0, correct, incorrect or censored",
        "line 7: field 'answer' is empty",
    )
    skipped = read_answers(path, AnswerFields(), skip_bad_rows=True)
    assert (len(skipped.answers), skipped.faults) == (1, error.value.problems)


def test_all_fields_that_are_missing_are_named_at_once(write: Write) -> None:
    with pytest.raises(DataError) as error:
        read_answers(write({"x": 1, "y": 2}), AnswerFields(label="z"))

    assert [problem.partition(";")[0] for problem in error.value.problems] == [
        "no field has a usual name (completion, response, output, generated, prediction)",
        "no field is named 'z'",
        "no field has a usual name (question, problem, prompt, query, input)",
    ]
    assert "no field has a usual name (answer, solution, target, label" in error.value.problems[2]
    assert error.value.problems[0].endswith("name the completion field with --completion-field, one of: x, y")


@pytest.mark.parametrize(("content", "reason"), [(b"", "it is empty"), (None, "there is no such file")])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "answers.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=reason):
        read_answers(path, AnswerFields())


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    with suppress(DataError):
        assert read_answers(path, AnswerFields()).answers


# --- counting ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([C, N, X]), st.sampled_from([C, N, X]))))
def test_rates_are_of_what_both_sides_judged(pairs: list[tuple[Verdict, Verdict]]) -> None:
    confusion = Confusion.of(pairs)
    judged = [(verdict, label) for verdict, label in pairs if X not in {verdict, label}]

    def rate(chosen: list[tuple[Verdict, Verdict]], count: int) -> Rate | None:
        if not chosen:
            return None
        low, high = proportion_confint(count, len(chosen), method="wilson")
        return Rate(count, len(chosen), count / len(chosen), low, high)

    assert confusion.judged == len(judged)
    assert confusion.accuracy == rate(judged, sum(verdict is label for verdict, label in judged))
    wrong, right = ([pair for pair in judged if pair[1] is label] for label in (N, C))
    assert confusion.false_positives == rate(wrong, wrong.count((C, N)))
    assert confusion.false_negatives == rate(right, right.count((N, C)))


def test_the_interval_is_wilsons() -> None:
    accuracy = Confusion.of([(C, C)] * 8 + [(C, N)] * 2).accuracy

    assert accuracy is not None
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 0.8, n = 10, z = 1.959964
    assert (round(accuracy.low95, 4), round(accuracy.high95, 4)) == (0.4902, 0.9433)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(write: Write) -> Path:
    """Two that both sides call correct, one each of the other cases, one cut off, one without a label."""
    return write(
        row("#### 18", correct=True),
        row("It is 18.", correct=1),
        row("#### 17", correct="incorrect"),
        row("#### 18", correct=False),
        row("#### 17", correct=True),
        row("#### 18", correct=True, truncated=True),
        row("#### 18", correct=None),
    )


def grade(*arguments: object) -> Ended:
    return run_pts("grade", *map(str, arguments))


def test_grade_prints_one_json_object(labelled: Path) -> None:
    ended = grade(labelled, "--json", "--explain", "9")

    report = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert report["oracle"] == {"oracle": "math", "oracle.seconds": 5.0}
    assert (report["answers"], report["labelled"], report["judged"]) == (7, 6, 5)
    assert report["verdicts"] == {"correct": 4, "incorrect": 2, "censored": 1}
    assert report["confusion"] == {
        "correct": {"correct": 2, "incorrect": 1, "censored": 0},
        "incorrect": {"correct": 1, "incorrect": 1, "censored": 0},
        "censored": {"correct": 1, "incorrect": 0, "censored": 0},
    }
    assert (report["accuracy"]["count"], report["accuracy"]["of"]) == (3, 5)
    assert (report["false_positive_rate"]["value"], report["false_negative_rate"]["of"]) == (0.5, 3)
    assert [one["line"] for one in report["explained"]] == [4, 5, 6]
    assert (report["oracle_failures"], report["skipped_rows"]) == (0, [])


def test_grade_prints_a_confusion_table_for_people(labelled: Path) -> None:
    ended = grade(labelled, "--explain", "1")

    assert ended.code == 0
    assert "7 answers: 4 correct, 2 incorrect, 1 censored" in ended.out
    assert "verdict by correct" in ended.out
    assert "accuracy: 0.600 (0.231 … 0.882), 3 of 5" in ended.out
    assert "false positive rate: 0.500" in ended.out
    assert "judged by both: 5 of 6 labelled" in ended.out
    assert "line 4: correct, labelled incorrect: 18 equals 18 (read '18', gold '18')" in ended.out
    assert "line 5" not in ended.out


def test_without_labels_there_is_no_table_and_what_is_not_correct_is_explained(write: Write) -> None:
    ended = grade(write(row("#### 18"), row("#### 17")), "--explain", "5")

    assert "labelled" not in ended.out
    assert "line 2: incorrect: 17 is not 18" in ended.out
    assert "confusion" not in json.loads(grade(write(row()), "--json").out)


def test_the_graded_rows_are_written_with_their_verdicts(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "graded.jsonl"

    assert grade(labelled, "--out", out).code == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["verdict"] for one in rows] == ["correct"] * 2 + [
        "incorrect",
        "correct",
        "incorrect",
        "censored",
        "correct",
    ]
    assert {**rows[2]} == {
        **row("#### 17", correct="incorrect"),
        "verdict": "incorrect",
        "extracted": "17",
        "explanation": "17 is not 18",
        "oracle_failed": False,
    }


def test_an_oracle_with_options_grades_by_them(write: Write) -> None:
    path = write(row("A: 17\nA: 18", correct=True))
    options = ["--oracle", "regex", "--oracle-option", r"pattern=A: (\d+)"]

    right, wrong = (
        json.loads(grade(path, *options, *more, "--json").out)
        for more in ([], ["--oracle-option", "which=first"])
    )
    assert right["verdicts"]["correct"] == 1
    assert wrong["verdicts"]["incorrect"] == 1


def test_answers_are_joined_with_a_data_set(write: Write) -> None:
    dataset = write(
        {"id": "one", "question": "Q", "answer": "18"},
        {"id": "two", "question": "R", "answer": "19"},
        name="d.jsonl",
    )
    path = write({"id": "two", "output": "19"}, {"id": "one", "output": "19"})

    assert json.loads(grade(path, "--dataset", dataset, "--json").out)["verdicts"] == {
        "correct": 1,
        "incorrect": 1,
        "censored": 0,
    }


def test_a_data_set_is_read_by_the_options_of_data_sets(write: Write) -> None:
    dataset = write({"id": "one", "q": "Q", "gold": "18"}, ["no object"], name="d.rows")
    path = write({"id": "one", "completion": "18"})
    options = ["--dataset", dataset, "--question-field", "q", "--answer-field", "gold", "--format", "jsonl"]

    assert grade(path, *options).error() == f"{dataset}: line 2: not a JSON object"
    ended = grade(path, *options, "--skip-bad-rows", "--json")
    assert json.loads(ended.out)["verdicts"]["correct"] == 1


def test_the_rows_are_read_by_a_named_layout_without_a_data_set(write: Write) -> None:
    path = write(row("Paris", answer="Paris", choices=["London", "Paris"]), name="answers")

    ended = grade(path, "--layout", "plain", "--oracle", "choice", "--json")
    assert json.loads(ended.out)["verdicts"]["correct"] == 1
    assert "unknown layout 'x'; expected" in grade(path, "--layout", "x").error()


def test_what_is_written_is_json_whatever_was_read(tmp_path: Path) -> None:
    path, out = tmp_path / "answers.parquet", tmp_path / "graded.jsonl"
    when = datetime(2024, 5, 6, tzinfo=UTC)
    rows = [row(score=math.nan, at=when, more={"x": [math.inf, 1.5]})]
    pq.write_table(pa.Table.from_pylist(rows), path)

    assert grade(path, "--out", out).code == 0
    (line,) = out.read_text(encoding="utf-8").splitlines()
    written = json.loads(line, parse_constant=pytest.fail)
    assert [written[name] for name in ("score", "at", "more")] == [None, when.isoformat(), {"x": [None, 1.5]}]


def raises(problem: Problem, completion: str) -> bool:
    raise ZeroDivisionError(completion)


def test_failures_of_the_oracle_are_counted(write: Write) -> None:
    ended = grade(write(row(), row(truncated=True)), "--oracle", "tests.pts.test_grade:raises")

    assert ended.code == 0
    assert "2 answers: 0 correct, 0 incorrect, 2 censored" in ended.out
    assert "oracle failures: 1, censored" in ended.out


def test_a_bad_row_ends_the_command_unless_it_is_to_be_skipped(write: Write, tmp_path: Path) -> None:
    path = write(row(), ["no object"])
    out = tmp_path / "graded.jsonl"

    assert grade(path, "--out", out).error() == f"{path}: line 2: not a JSON object"
    assert not out.exists()
    ended = grade(path, "--out", out, "--skip-bad-rows")
    assert ended.code == 0
    assert "skipped rows: 1" in ended.out
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--oracle", "nothing"], "unknown oracle 'nothing'; the choices are math"),
        (["--oracle", "choice"], "oracle 'choice' does not fit 1 of 1 problems: problem "),
        (["--oracle-option", "x=1"], "oracle 'math': there is no option 'x'; expected seconds"),
        (
            ["--label-field", "nothing"],
            "no field is named 'nothing'; name the label field with --label-field",
        ),
        (["--out", "{file}"], "it is the file that is read; write to another"),
        (["--out", "nowhere/graded.jsonl"], "its folder does not exist"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (
            ["--label-field", "verdict", "--out", "graded.jsonl"],
            "the labels are in 'verdict', which grading writes",
        ),
    ],
)
def test_what_is_wrong_is_one_clear_line(write: Write, arguments: list[str], message: str) -> None:
    path = write(row(verdict="correct"))

    assert message in grade(path, *(one.format(file=path) for one in arguments)).error()
