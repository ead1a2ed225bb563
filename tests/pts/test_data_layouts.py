"""Layouts: made-up rows in the published columns of well-known data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.data import LAYOUTS, DataOptions, Problem, load_problems, problem_id, suggest_oracle
from steering_pts.data.layouts import find_columns
from steering_pts.data.rendering import options_of
from steering_pts.data.rows import Values
from steering_pts.data.values import RowError
from steering_pts.errors import DataError

GSM8K = {"question": "Two nets of 3 lemons?", "answer": "2*3=<<2*3=6>>6\n#### 6"}
MATH = {
    "problem": "Add $1$ and $2$.",
    "solution": "It is $\\boxed{3}$.",
    "level": "Level 1",
    "type": "Prealgebra",
}
ARC = {
    "id": "Made_1",
    "question": "Which one floats?",
    "choices": {"text": ["a stone", "a cork", "a nail"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
ARC_NESTED = {
    "id": "Made_1",
    "question": {
        "stem": "Which one floats?",
        "choices": [
            {"text": "a stone", "label": "A"},
            {"text": "a cork", "label": "B"},
            {"text": "a nail", "label": "C"},
        ],
    },
    "answerKey": "B",
}
MMLU = {
    "question": "Which is a prime number?",
    "subject": "numbers",
    "choices": ["4", "6", "7", "9"],
    "answer": 2,
}
BOOLQ = {"question": "do corks float", "passage": "Corks are light. They float.", "answer": True}
HUMANEVAL = {
    "task_id": "Made/0",
    "prompt": 'def twice(x):\n    """Two times x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "twice",
}
MBPP = {
    "task_id": 1,
    "text": "Write a function that doubles a number.",
    "code": "def twice(x):\n    return 2 * x",
    "test_list": ["assert twice(1) == 2", "assert twice(3) == 6"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
ROWS: dict[str, dict[str, object]] = {
    "gsm8k": {**GSM8K},
    "math": {**MATH},
    "arc": {**ARC},
    "arc_nested": {**ARC_NESTED},
    "mmlu": {**MMLU},
    "boolq": {**BOOLQ},
    "humaneval": {**HUMANEVAL},
    "mbpp": {**MBPP},
    "plain": {"input": "Q", "target": "A"},
}
ORACLES = {
    "gsm8k": "math",
    "math": "math",
    "arc": "choice",
    "arc_nested": "choice",
    "mmlu": "choice",
    "boolq": "choice",
    "humaneval": "python",
    "mbpp": "python",
    "plain": None,
}


def problem_of(row: Values, **options: str | None) -> Problem:
    return find_columns([row], **options).problem_of(row)


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_is_recognised_by_its_columns_and_contents(name: str) -> None:
    assert find_columns([ROWS[name]]).layout.name == name


def test_every_layout_has_an_example_here() -> None:
    assert ROWS.keys() == LAYOUTS.keys() == ORACLES.keys()


@pytest.mark.parametrize("name", ROWS)
def test_the_oracle_that_fits_is_told_from_the_problems_alone(name: str) -> None:
    problem = problem_of(ROWS[name])

    assert suggest_oracle([problem, problem]) == ORACLES[name] == LAYOUTS[name].oracle


def test_problems_of_different_layouts_suggest_no_oracle() -> None:
    assert suggest_oracle([problem_of(GSM8K), problem_of(ARC)]) is None
    assert suggest_oracle([]) is None


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_layouts_are_the_same_from_json_and_from_json_text_in_csv(tmp_path: Path, suffix: str) -> None:
    for name, row in ROWS.items():
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "jsonl":
            path.write_text(json.dumps(row))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, [*row])
                writer.writeheader()
                writer.writerow(
                    {n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()}
                )

        (problem,) = load_problems(path)

        wanted = problem_of(row)
        assert (problem.id, problem.question, problem.answer) == (
            wanted.id,
            wanted.question,
            wanted.answer,
        ), name


def test_gsm8k_gives_the_worked_answer() -> None:
    assert problem_of(GSM8K) == Problem(
        problem_id(GSM8K["question"], GSM8K["answer"]), GSM8K["question"], GSM8K["answer"], {}
    )


def test_math_gives_the_solution_or_the_final_answer_where_there_is_one() -> None:
    problem = problem_of(MATH)

    assert (problem.question, problem.answer) == (MATH["problem"], MATH["solution"])
    assert problem.fields == {"level": "Level 1", "type": "Prealgebra"}
    assert problem_of({**MATH, "answer": "3"}).answer == "3"


def test_arc_gives_the_question_with_its_options_and_the_label() -> None:
    problem = problem_of(ARC)

    assert problem.question == "Which one floats?\n\nA) a stone\nB) a cork\nC) a nail"
    assert problem.answer == "B"
    assert problem.fields == {"id": "Made_1", "choices": json.dumps(ARC["choices"])}


def test_arc_as_it_was_published_gives_the_same_problem() -> None:
    nested, flat = problem_of(ARC_NESTED), problem_of(ARC)

    assert (nested.id, nested.question, nested.answer) == (flat.id, flat.question, flat.answer)
    assert json.loads(nested.fields["choices"]) == ARC_NESTED["question"]["choices"]  # type: ignore[index]


def test_arc_labels_may_be_numbers() -> None:
    row = {**ARC, "choices": {"text": ["a stone", "a cork"], "label": ["1", "2"]}, "answerKey": "2"}

    assert problem_of(row).question.endswith("\n1) a stone\n2) a cork")
    assert problem_of(row).answer == "2"


@pytest.mark.parametrize(("answer", "letter"), [(0, "A"), (2, "C"), ("2", "C"), ("D", "D")])
def test_mmlu_gives_the_question_with_its_options_and_the_letter(answer: object, letter: str) -> None:
    problem = problem_of({**MMLU, "answer": answer})

    assert problem.question == "Which is a prime number?\n\nA) 4\nB) 6\nC) 7\nD) 9"
    assert problem.answer == letter
    assert problem.fields == {"subject": "numbers", "choices": '["4", "6", "7", "9"]'}


@pytest.mark.parametrize(
    ("answer", "gold"), [(True, "yes"), (False, "no"), ("True", "yes"), ("false", "no"), ("Yes", "yes")]
)
def test_boolq_gives_passage_and_question_and_yes_or_no(answer: object, gold: str) -> None:
    row = {**BOOLQ, "answer": answer}
    problem = problem_of(row, layout="boolq")

    assert problem.question == "Corks are light. They float.\n\ndo corks float"
    assert (problem.answer, problem.fields) == (gold, {})


@pytest.mark.parametrize(
    ("label", "gold"), [(1, "yes"), (0, "no"), ("1", "yes"), (True, "yes"), ("false", "no")]
)
def test_boolq_may_have_a_class_in_the_place_of_the_answer(label: object, gold: str) -> None:
    row = {"idx": 3, "question": BOOLQ["question"], "passage": BOOLQ["passage"], "label": label}
    problem = problem_of(row)

    assert problem.id == problem_of({**BOOLQ, "answer": gold}, layout="boolq").id
    assert problem.fields == {"idx": "3"}


def test_a_reading_data_set_with_other_classes_is_not_boolq() -> None:
    row = {"question": "Q", "passage": "P", "label": 2}

    assert find_columns([row]).layout.name == "plain"
    assert find_columns([{**BOOLQ, "answer": 1}]).layout.name == "plain"


def test_usual_names_may_have_capitals_but_do_without_them_first() -> None:
    assert problem_of({"Question": "Q", "ANSWER": "A"}) == problem_of({"question": "Q", "answer": "A"})
    assert problem_of({"Question": "Q", "problem": "P", "answer": "A"}).question == "P"


def test_a_reading_data_set_with_answers_in_words_is_not_boolq() -> None:
    assert find_columns([{**BOOLQ, "answer": "light"}]).layout.name == "plain"


def test_humaneval_gives_the_prompt_and_the_tests_and_keeps_what_runs_them() -> None:
    problem = problem_of(HUMANEVAL)

    assert (problem.question, problem.answer) == (HUMANEVAL["prompt"], HUMANEVAL["test"])
    assert problem.fields == HUMANEVAL


@pytest.mark.parametrize("name", ["text", "prompt"])
def test_mbpp_gives_the_task_with_its_tests(name: str) -> None:
    row = {name if key == "text" else key: value for key, value in MBPP.items()}
    problem = problem_of(row)

    assert problem.question == (
        "Write a function that doubles a number.\n\nThe code must pass these tests:\n\n"
        "assert twice(1) == 2\nassert twice(3) == 6"
    )
    assert problem.answer == "assert twice(1) == 2\nassert twice(3) == 6"
    assert problem.fields["test_list"] == json.dumps(MBPP["test_list"])


# --- named layouts and fields -----------------------------------------------------------------------------------------


def test_named_fields_are_taken_as_they_are() -> None:
    problem = problem_of({**ARC, "gold": "cork"}, answer_field="gold")

    assert (problem.question, problem.answer) == ("Which one floats?", "cork")


def test_named_fields_stand_in_the_place_of_a_named_layouts_own() -> None:
    row = {"question_stem": "Which one floats?", "choices": ARC["choices"], "key": "B"}

    assert problem_of(row, layout="arc", question_field="question_stem", answer_field="key") == problem_of(
        {key: ARC[key] for key in ("question", "choices", "answerKey")}
    )


def test_a_named_layout_is_not_questioned() -> None:
    assert problem_of(MMLU, layout="plain").answer == "2"


def test_a_named_layout_lists_all_columns_that_it_misses() -> None:
    with pytest.raises(ValueError, match=r".") as error:
        find_columns([{"question": "Q", "other": 1}], "arc")

    assert str(error.value) == (
        "no field 'choices', which the layout arc needs; no field has a usual name (answerKey); name the answer field "
        "with --answer-field. The fields are: question, other"
    )


def test_an_unknown_layout_and_format_and_a_limit_below_one_are_all_told_at_once() -> None:
    with pytest.raises(DataError) as error:
        DataOptions(format="xml", layout="qa", limit=0)  # type: ignore[arg-type]

    assert error.value.problems == (
        "unknown format 'xml'; expected jsonl, json, csv, parquet",
        "unknown layout 'qa'; expected humaneval, mbpp, arc, arc_nested, mmlu, boolq, math, gsm8k, plain",
        "the limit must be at least 1, not 0",
    )


def test_one_odd_row_does_not_change_the_layout() -> None:
    rows = [GSM8K, {"question": "Q", "answer": "no mark"}, {**GSM8K, "question": "R"}]

    assert find_columns(rows).layout.name == "gsm8k"


# --- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "change", "fault"),
    [
        ("arc", {"answerKey": "E"}, "field 'answerKey' is 'E', none of the labels A, B, C"),
        ("arc", {"choices": None}, "no field 'choices'"),
        (
            "arc",
            {"choices": "{'text': array(['a'])}"},
            "field 'choices' must be JSON (Expecting property name",
        ),
        ("arc", {"choices": "7"}, "field 'choices' must be a list or an object, not int 7"),
        (
            "arc",
            {"choices": {"text": ["a"], "label": ["A", "B"]}},
            "field 'choices' must be a list of options",
        ),
        (
            "arc",
            {"choices": {"text": ["a", "b"], "label": ["A", "A"]}},
            "field 'choices' must hold at least two",
        ),
        (
            "arc",
            {"choices": {"text": ["a", " "], "label": ["A", "B"]}},
            "field 'choices' must hold at least two",
        ),
        ("mmlu", {"answer": 4}, "field 'answer' is '4'; expected 0 to 3, or A to D"),
        ("mmlu", {"answer": -1}, "field 'answer' is '-1'; expected 0 to 3, or A to D"),
        ("mmlu", {"answer": "7 is"}, "field 'answer' is '7 is'; expected 0 to 3, or A to D"),
        ("mmlu", {"answer": True}, "field 'answer' must be text or a number, not bool True"),
        ("mmlu", {"choices": ["one"]}, "field 'choices' must hold at least two"),
        ("boolq", {"answer": 1}, "field 'answer' is '1'; expected true or false"),
        ("boolq", {"answer": None}, "no field 'answer'"),
        ("boolq", {"passage": ""}, "field 'passage' is empty"),
        ("mbpp", {"test_list": []}, "field 'test_list' must be a list of tests"),
        ("mbpp", {"test_list": [3]}, "field 'test_list' must be a list of tests"),
        ("humaneval", {"test": None}, "no field 'test'"),
    ],
)
def test_a_row_that_breaks_its_layout_says_how(layout: str, change: Values, fault: str) -> None:
    columns = find_columns([ROWS[layout]])

    with pytest.raises(RowError) as error:
        columns.problem_of({**ROWS[layout], **change})

    assert str(error.value).startswith(fault)


# --- options ----------------------------------------------------------------------------------------------------------

labels = st.lists(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", min_size=1, max_size=2), unique=True, min_size=2
)
option_texts = st.text(min_size=1).map(str.strip).filter(bool)


@given(options=labels.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, option_texts))))
def test_options_are_the_same_in_every_form_that_they_are_published_in(options: dict[str, str]) -> None:
    columns = {"label": [*options], "text": [*options.values()]}
    items = [{"label": label, "text": text} for label, text in options.items()]

    assert options_of({"choices": columns}, "choices") == options
    assert options_of({"choices": items}, "choices") == options
    assert options_of({"choices": json.dumps(columns)}, "choices") == options
