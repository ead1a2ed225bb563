"""The planted problems: what they say, how they split, and the rates of their decisions."""

import json
import re
from collections import Counter
from random import Random

import pytest

from steering_pts.demo import data_path, model_path
from steering_pts.demo.kinds import decision_kind
from steering_pts.demo.problems import (
    FORMS,
    RULES,
    SPLITS,
    Form,
    Problem,
    draw_problem,
    final_answer,
    find_problem,
    flawed_beginning,
    flawed_working,
    is_correct,
    opening,
    problems_in,
    rows_of,
    split_of,
    write_solution,
)

SUM = Problem("sum-product", (7, 5, 3))
BRACKET = Problem("bracket-product", (4, 2, 6))
DIFFERENCE = Problem("bracket-difference", (21, 7, 3))
PRODUCTS = Problem("two-products", (2, 3, 4, 5))
EXAMPLES = (SUM, BRACKET, DIFFERENCE, PRODUCTS)


def without_slips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering_pts.demo.problems.SLIP_RATE", 0.0)


def solutions(problem: Problem, count: int = 200) -> set[str]:
    rng = Random(0)
    return {write_solution(problem, rng) for _ in range(count)}


def all_problems() -> list[Problem]:
    return [p for split in SPLITS for form in FORMS for p in problems_in(split, form)]


@pytest.mark.parametrize(
    ("problem", "question", "answer"),
    [
        (SUM, "7 + 5 * 3", "22"),
        (BRACKET, "4 * (2 + 6)", "32"),
        (DIFFERENCE, "21 - (7 - 3)", "17"),
        (PRODUCTS, "2 * 3 + 4 * 5", "26"),
    ],
)
def test_question_and_answer(problem: Problem, question: str, answer: str) -> None:
    assert (problem.question, problem.answer) == (question, answer)


def test_every_answer_is_the_value_of_its_expression() -> None:
    for problem in all_problems():
        assert re.fullmatch(r"[\d +*()-]+", problem.question)
        assert int(problem.answer) == eval(problem.question)  # noqa: S307 - digits and signs only


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (
            SUM,
            {
                "Plan: precedence. 5 * 3 = 15. 7 + 15 = 22. Answer: 22",
                "Plan: left to right. 7 + 5 = 12. 12 * 3 = 36. Answer: 36",
                (
                    "Plan: left to right. 7 + 5 = 12. 12 * 3 = 36."
                    " Wait, precedence. 5 * 3 = 15. 7 + 15 = 22. Answer: 22"
                ),
            },
        ),
        (
            BRACKET,
            {
                "Plan: precedence. 2 + 6 = 8. 4 * 8 = 32. Answer: 32",
                "Plan: left to right. 4 * 2 = 8. 8 + 6 = 14. Answer: 14",
                (
                    "Plan: left to right. 4 * 2 = 8. 8 + 6 = 14."
                    " Wait, precedence. 2 + 6 = 8. 4 * 8 = 32. Answer: 32"
                ),
            },
        ),
        (
            DIFFERENCE,
            {
                "7 - 3 = 4. 21 - 4 = 17. Answer: 17",
                "21 - 7 = 14. 14 - 3 = 11. Answer: 11",
                "21 - 7 = 14. 14 - 3 = 11. Wait, 7 - 3 = 4. 21 - 4 = 17. Answer: 17",
            },
        ),
        (
            PRODUCTS,
            {
                "Plan: precedence. 2 * 3 = 6. 4 * 5 = 20. 6 + 20 = 26. Answer: 26",
                "Plan: left to right. 2 * 3 = 6. 6 + 4 = 10. 10 * 5 = 50. Answer: 50",
                "Plan: left to right. Wait, precedence. 2 * 3 = 6. 4 * 5 = 20. 6 + 20 = 26. Answer: 26",
            },
        ),
    ],
)
def test_each_form_has_exactly_three_solutions_without_slips(
    problem: Problem, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_slips(monkeypatch)
    assert solutions(problem) == expected


def test_the_routes_differ_in_their_answers_and_their_deciding_text() -> None:
    for problem in all_problems():
        flawed_result = re.findall(r"= (\d+)\.", flawed_working(problem))[-1]
        assert flawed_result != problem.answer
        assert opening(problem, "right") != opening(problem, "flawed")


def test_slips_never_write_a_negative_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering_pts.demo.problems.SLIP_RATE", 0.9)
    rng = Random(0)
    for _ in range(3000):
        assert not re.search(r"-\d", write_solution(draw_problem("train", rng), rng))


def test_a_slip_is_by_one_or_ten_and_is_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering_pts.demo.problems.SLIP_RATE", 1.0)
    for solution in solutions(SUM):
        if solution.startswith("Plan: precedence"):
            match = re.search(r"5 \* 3 = (\d+)\. 7 \+ (\d+) = (\d+)\. Answer: (\d+)", solution)
            assert match
            product, carried, result, answer = map(int, match.groups())
            assert product in {5, 14, 16, 25}
            assert carried == product
            assert result - (7 + product) in {-10, -1, 1, 10}
            assert answer == result


@pytest.mark.parametrize("form", FORMS)
def test_decisions_are_drawn_at_their_planted_rates(form: Form) -> None:
    rng = Random(1)
    drawn = 6000
    flawed = corrected = 0
    for problem in rng.choices(problems_in("train", form), k=drawn):
        solution = write_solution(problem, rng)
        is_flawed = solution.startswith(opening(problem, "flawed"))
        flawed += is_flawed
        corrected += "Wait" in solution
        assert is_flawed or "Wait" not in solution
    # 0.03 is four standard errors or more of either share.
    assert abs(flawed / drawn - RULES[form].flawed_rate) < 0.03
    assert abs(corrected / flawed - RULES[form].corrected_rate) < 0.04


def test_forms_are_drawn_by_their_shares() -> None:
    rng = Random(2)
    counts = Counter(draw_problem("train", rng).form for _ in range(6000))
    for form in FORMS:
        assert abs(counts[form] / 6000 - RULES[form].share) < 0.03


def test_the_same_seed_writes_the_same_solutions() -> None:
    assert [write_solution(SUM, Random(seed)) for seed in range(50)] == [
        write_solution(SUM, Random(seed)) for seed in range(50)
    ]


def test_the_splits_are_disjoint_and_decided_by_the_question_alone() -> None:
    by_split = {split: {p.question for form in FORMS for p in problems_in(split, form)} for split in SPLITS}
    assert not by_split["train"] & by_split["validation"]
    assert not (by_split["train"] | by_split["validation"]) & by_split["test"]
    for split, questions in by_split.items():
        assert {split_of(question) for question in questions} == {split}
    # SHA-256 of the text: these places can never move, or training data would leak into tests.
    assert [split_of(p.question) for p in EXAMPLES] == ["train", "test", "train", "train"]


def test_splits_have_their_shares() -> None:
    total = len(all_problems())
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        size = sum(len(problems_in(split, form)) for form in FORMS)
        assert abs(size / total - share) < 0.02


def test_a_data_set_gives_each_form_its_share_or_all_it_has() -> None:
    counts = Counter(row.form for row in rows_of("test", 600, Random(0)))
    for form in FORMS:
        available = len(problems_in("test", form))
        assert counts[form] == min(available, round(600 * RULES[form].share))


@pytest.mark.parametrize(("split", "size"), [("train", 800), ("validation", 400), ("test", 600)])
def test_shipped_rows_are_distinct_right_and_of_their_split(split: str, size: int) -> None:
    rows = [json.loads(line) for line in data_path(split).read_text("utf-8").splitlines()]
    assert 0.9 * size <= len(rows) <= size
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        found = find_problem(row["question"])
        assert found is not None
        assert row.keys() == {"id", "question", "answer", "form"}
        assert (row["form"], row["answer"]) == (found[0].form, found[0].answer)
        assert split_of(row["question"]) == split


def test_paths_point_at_shipped_files() -> None:
    assert (model_path() / "config.json").is_file()
    assert all(data_path(split).is_file() for split in SPLITS)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        data_path("dev")


@pytest.mark.parametrize("problem", EXAMPLES)
def test_a_question_is_found_in_its_prompt_and_behind_its_solution(problem: Problem) -> None:
    prompt = f"<|user|>{problem.question}"
    for solution in solutions(problem):
        for text in (prompt, f"{prompt}<|end|><|assistant|>{solution}", f"{prompt}{solution}"):
            assert find_problem(text) == (problem, len(prompt))


def test_no_question_is_found_where_there_is_none() -> None:
    assert find_problem("Plan: precedence. 5 * 3 = 15. 7 + 15 = 22. Answer: 22") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 36. Answer: 22", "22"),
        ("7 - 3 = 4. Answer: 4 ", "4"),
        ("Answer: x", None),
        ("5 * 3 = 15.", None),
        ("Answer:", None),
    ],
)
def test_the_final_answer_is_the_number_behind_the_last_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_solution_is_correct_by_its_final_answer() -> None:
    assert is_correct(SUM, "Plan: left to right. Answer: 22")
    assert not is_correct(SUM, "Plan: precedence. 5 * 3 = 15. 7 + 15 = 22. Answer: 2")


@pytest.mark.parametrize("problem", EXAMPLES)
def test_flawed_beginnings_stop_where_a_correction_may_follow(problem: Problem) -> None:
    assert any(s.startswith(f"{flawed_beginning(problem)} Wait,") for s in solutions(problem))
    assert any(s.startswith(f"{flawed_working(problem)} Answer:") for s in solutions(problem))


FLAWED_SUM = "Plan: left to right. 7 + 5 = 12. 12 * 3 = 36."


@pytest.mark.parametrize(
    ("problem", "prefix", "token", "alternatives", "kind"),
    [
        (SUM, "Plan:", " precedence", [" left"], "strategy"),
        (SUM, "Plan:", " left", [" precedence"], "strategy"),
        (SUM, "Plan", ":", [], "other"),
        (SUM, "", "Plan", [], "other"),
        (SUM, "Plan: left", " to", [], "other"),
        (SUM, FLAWED_SUM, " Wait", [" Answer"], "correction"),
        (SUM, FLAWED_SUM, " Answer", [" Wait"], "correction"),
        (SUM, f"{FLAWED_SUM} Wait,", " precedence", [], "other"),
        (SUM, "Plan: precedence. 5 * 3 = 15. 7 + 15 = 22.", " Answer", [" Wait"], "other"),
        (SUM, "Plan: precedence. 5 * 3 =", " 2", [" 1"], "slip"),
        (SUM, "Plan: precedence. 5 * 3 = 1", "4", ["5"], "slip"),
        (SUM, "Plan: precedence. 5 * 3 = 15", ".", [], "other"),
        (SUM, "Plan: precedence. 5 * 3", " =", [], "other"),
        (SUM, "Plan: precedence.", " 5", [], "other"),
        (SUM, "Plan: precedence. 5 * 3 = 15. 7 + 15 = 22. Answer:", " 2", [], "other"),
        (DIFFERENCE, "", "7", ["2"], "operand"),
        (DIFFERENCE, "", "2", ["7"], "operand"),
        (DIFFERENCE, "", "9", ["7"], "other"),
        (DIFFERENCE, "2", "1", [], "other"),
        (DIFFERENCE, "21 - 7 = 14. 14 - 3 = 11.", " Answer", [" Wait"], "correction"),
        (DIFFERENCE, "21 - 7 = 14. 14 - 3 = 11. Wait,", " 7", [], "other"),
        (DIFFERENCE, "7 - 3 = 4. 21 - 4 = 17.", " Answer", [" Wait"], "other"),
        (PRODUCTS, "Plan: left to right.", " Wait", [" 2"], "correction"),
        (PRODUCTS, "Plan: left to right.", " 2", [" Wait"], "correction"),
        (PRODUCTS, "Plan: left to right. 2 * 3 = 6.", " 6", [], "other"),
    ],
)
def test_the_kind_of_a_decision_is_read_off_the_text(
    problem: Problem, prefix: str, token: str, alternatives: list[str], kind: str
) -> None:
    marked = f"<|user|>{problem.question}<|end|><|assistant|>{prefix}"
    assert decision_kind(marked, token, alternatives) == kind
    assert decision_kind(problem.question + prefix, token, alternatives) == kind


def test_a_token_outside_a_solution_is_no_decision() -> None:
    assert decision_kind("Plan:", " left", [" precedence"]) == "other"
