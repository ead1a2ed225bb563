import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import (
    ExactOracle,
    Judgement,
    MathOracle,
    Oracle,
    Verdict,
    choose_oracle,
    judge_all,
    make_oracle,
)
from steering_pts.oracles.dressing import undress
from steering_pts.oracles.extraction import extract_answer, gold_answer


def problem(answer: str) -> Problem:
    return Problem("0" * 16, "How many?", answer)


@pytest.fixture(scope="module")
def math_oracle() -> Iterator[MathOracle]:
    with MathOracle() as oracle:
        yield oracle


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("16 - 3 = <<16-3=13>>13\n#### 18", "18"),
        ("#### 70,000 \nDone.", "70000"),
        ("#### 3\n#### 4", "3"),
        ("####\n#### 4", "4"),
        ("#### 3#### 4", "3"),
        ("##### 4", "4"),
        ("#### 18!", "18"),
        ("#### Evelyn", "Evelyn"),
        (r"\boxed{5} and so #### 4", "4"),
        ("#### Step 1: add\n3 + 4 = 7\n#### Step 2\nThe answer is 8.", "8"),
        ("#### 1. Count the eggs\nThere are 7.\n#### Solution:\n#### 8", "8"),
        ("#### **Final Answer**\n\\boxed{8}", "8"),
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{\{1,\{2\}\}}", r"\{1,\{2\}\}"),
        (r"\boxed 8", "8"),
        (r"$\fbox{x^{2}}$", "x^{2}"),
        ("Plan: left to right. 7 + 5 = 12. Answer: 36", "36"),
        ("Answer: 18.", "18"),
        ("Answer:\n\n18\n", "18"),
        ("The answer is $18.50. It was 3 before.", "18.50"),
        ("The answer is 3.14 metres.", "3.14"),
        ("**Final Answer:** 18", "18"),
        ("**Final Answer: 18**", "18"),
        ("The answer to this question would be 18", "18"),
        (r"The answer is \(\frac{3}{4}\), I think.", r"\frac{3}{4}"),
        ("The answer is $x^2 + 1$.", "x^2 + 1"),
        ("The answer is 5 + 3 = 8 apples.", "8"),
        ("The answer is 18 dollars per 2 days.", "18"),
        ("Answer: Janet makes $18 every day", "18"),
        ("Answer: (3, 4)", "(3, 4)"),
        ("Answer: C", "C"),
        ("We express the answer as a percentage: 90/450 = 20%\nSo 20", "20"),
        ("The answer is simple: 3+4=7, so 7", "7"),
        ("16 - 3 - 4 = 9, and no more", "9"),
        ("5-3", "3"),
        ("x is -3", "-3"),
        ("x = \u22123", "-3"),
        ("1,234 eggs", "1234"),
        ("on 1/2 of them", "1/2"),
        ("by 50 %", "50%"),
        (r"so half: \frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_the_answer_is_found(completion: str, answer: str) -> None:
    assert extract_answer(completion) == answer


@pytest.mark.parametrize("completion", ["", "no digits here", "1 + 2 = 3. Answer:", "Answer: "])
def test_a_completion_may_give_no_answer(completion: str) -> None:
    assert extract_answer(completion) is None


@pytest.mark.parametrize(
    ("dressed", "plain"),
    [
        ("$1,234.50", "1234.50"),
        (r"\$5", "5"),
        ("-$5", "-5"),
        ("+5", "5"),
        ("18 \u20ac", "18"),
        (r"$$\pi$$", r"\pi"),
        (r"\[ 5 \]", "5"),
        ("5 km/h", "5"),
        ("12 m^2", "12"),
        ("12 square metres", "12"),
        (r"5\text{ cm}", "5"),
        ("30\u00b0", "30"),
        (r"30^\circ", "30"),
        (r"25\%", "25%"),
        ("1 / 2", "1/2"),
        ("2 1/2 hours", r"2\frac{1}{2}"),
        (r"1\,000", "1000"),
        ("5 x", "5 x"),
        ("5x", "5x"),
        ("1,2", "1,2"),
        ("(1,234)", "(1,234)"),
        ("negative 3", "-3"),
        ("USD 10", "10"),
        ("US$10", "10"),
        ("1 234 567", "1234567"),
        (r"11,\! 111,\! 100", "11111100"),
        (r"3 \times 10^6", "3e6"),
        ("3 \u00d7 10^{-6} m", "3e-6"),
        ("2\u00bd", r"2\frac{1}{2}"),
        ("2\u03c0", r"2\pi"),
        ("2 pi", r"2 \pi"),
        ("2\u221a3", r"2\sqrt{3}"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\mathbf{(C)}", "(C)"),
        (r"90^{\circ}", "90"),
        (r"15\mbox{ cm}^2", "15"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("5!", "5!"),
        ("3 million", "3 million"),
        ("5 or 6", "5 or 6"),
    ],
)
def test_what_only_dresses_an_answer_is_taken_off(dressed: str, plain: str) -> None:
    assert undress(dressed) == plain


@settings(deadline=None)
@given(st.text())
@example("$" * 2000)
@example(r"\boxed{" * 300)
@example("answer " * 2000)
@example("1," * 2000)
@example("Answer: 5" + " " * 20000 + "x")
@example("Answer: -" + " " * 20000 + "x")
@example("#### 5 \\times" + " " * 20000 + "x")
@example("####" * 5000)
@example("Answer: 5" + " so 5 apples" * 40)
@example("Answer: " + "5 apples because " * 5000)
@example("Answer: a = " + "and 5 = " * 5000)
@example("Answer: " + "not 5 " * 80)
def test_any_text_can_be_searched(text: str) -> None:
    answer = extract_answer(text)

    assert answer is None or answer == answer.strip() != ""


@settings(deadline=None)
@given(
    st.integers(), st.sampled_from(["#### {}", r"\boxed{{{}}}", "Answer: {}", "the answer is {}.", "so {}"])
)
def test_an_integer_is_found_behind_every_marker(number: int, form: str) -> None:
    assert extract_answer(f"First 17, then 4. {form.format(number)}") == str(number)


@settings(deadline=None)
@given(st.integers(0, 10**12))
def test_commas_between_thousands_do_not_count(number: int) -> None:
    assert extract_answer(f"#### {number:,}") == str(number)


@settings(deadline=None)
@given(
    st.recursive(
        st.sampled_from(["x", "1", "+", " "]),
        lambda inner: st.lists(inner).map(lambda parts: "{" + "".join(parts) + "}"),
        max_leaves=20,
    )
)
def test_braces_nest_to_any_depth(content: str) -> None:
    spaced_once = re.sub(" +", " ", content)

    assert extract_answer(r"\boxed{7" + content + "7}") == "7" + spaced_once + "7"


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,$%/-+ xkm\\{}", max_size=20))
def test_undressing_twice_changes_nothing(text: str) -> None:
    assert undress(undress(undress(text))) == undress(undress(text))


@pytest.mark.parametrize(
    ("field", "answer"),
    [
        ("2*9=<<2*9=18>>18\n#### 18", "18"),
        (r"Hence \boxed{x+1}.", "x+1"),
        (" 3/4 ", "3/4"),
        ("1,000", "1000"),
    ],
)
def test_the_gold_answer_is_what_is_marked_or_all_there_is(field: str, answer: str) -> None:
    assert gold_answer(field) == answer


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("18", "Answer: 18"),
        ("18", "#### $18.00"),
        ("#### 1,050", "It is 1050 dollars."),
        ("-3", "x = -3.0"),
        ("0.1", "Answer: .10"),
        ("1/2", "Answer: 0.5"),
        ("1/2", "Answer: 50%"),
        ("50", "Answer: 50%"),
        ("0.333333", r"\boxed{\frac{1}{3}}"),
        (r"\frac{3}{4}", "Answer: 6/8"),
        ("2.5", "Answer: 2 1/2 hours"),
        ("x^2+2x+1", "The answer is $(x+1)^2$."),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"),
        ("(1, 2)", r"\boxed{(1,2)}"),
        (r"\text{Monday}", r"\boxed{\text{monday}}"),
    ],
)
def test_equal_answers_are_correct(math_oracle: MathOracle, gold: str, completion: str) -> None:
    assert math_oracle.judge(problem(gold), completion).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("18", "Answer: 17"),
        ("18", "Answer: 18.000000000000000000001"),
        ("18", "I do not know."),
        ("18", "Answer: eighteen"),
        ("1/3", "Answer: 0.3"),
        ("x+1", r"\boxed{x-1}"),
        ("18", r"\boxed{(1,2)}"),
        ("18", r"\boxed{\frac{}"),
        ("18", r"\boxed{" + "(" * 5000 + "}"),
    ],
)
def test_other_answers_are_incorrect(math_oracle: MathOracle, gold: str, completion: str) -> None:
    assert math_oracle.judge(problem(gold), completion).verdict is Verdict.INCORRECT


def test_a_judgement_tells_the_answer_and_why(math_oracle: MathOracle) -> None:
    assert math_oracle.judge(problem("#### 18"), "Answer: $17.") == Judgement(
        Verdict.INCORRECT, "17", "17 is not 18"
    )


def test_plain_numbers_need_no_process() -> None:
    with MathOracle() as oracle:
        oracle.judge(problem("18"), "Answer: 18.0")
        assert oracle._worker._process is None


def test_a_pair_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with MathOracle() as oracle:
        compared: list[tuple[str, str]] = []

        def count(gold: str, answer: str) -> bool:
            compared.append((gold, answer))
            return True

        monkeypatch.setattr(type(oracle._worker), "equal", lambda _, gold, answer: count(gold, answer))
        for completion in ["Answer: 1/2", "so \\boxed{1/2}", "Answer: 1/2."]:
            oracle.judge(problem("0.5"), completion)

    assert compared == [("0.5", "1/2")]


def test_answers_are_compared_in_any_thread(math_oracle: MathOracle) -> None:
    judgements: list[Judgement] = []
    thread = threading.Thread(
        target=lambda: judgements.append(math_oracle.judge(problem("3/7"), "Answer: 9/21"))
    )
    thread.start()
    thread.join()

    assert [judgement.verdict for judgement in judgements] == [Verdict.CORRECT]


def test_a_comparison_that_hangs_is_censored_and_the_next_one_works() -> None:
    with MathOracle(seconds=1) as oracle:
        oracle.judge(problem("1/2"), "Answer: 2/4")  # starts the process
        judgement = oracle.judge(problem("18"), r"\boxed{9^{9^{9^{9}}}}")

        assert (judgement.verdict, judgement.failed) == (Verdict.CENSORED, True)
        assert judgement.explanation.endswith("took longer than 1 s")
        assert oracle.judge(problem("1/2"), "Answer: 3/6").verdict is Verdict.CORRECT


def test_a_process_that_stops_is_ended_and_replaced() -> None:
    with MathOracle(seconds=1) as oracle:
        oracle.judge(problem("1/2"), "Answer: 2/4")
        stopped = oracle._worker._process
        assert stopped is not None
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGSTOP)

        assert oracle.judge(problem("1/2"), "Answer: 3/6").verdict is Verdict.CENSORED
        assert oracle.judge(problem("1/2"), "Answer: 4/8").verdict is Verdict.CORRECT


def test_a_process_that_dies_is_censored_and_replaced() -> None:
    with MathOracle() as oracle:
        oracle.judge(problem("1/2"), "Answer: 2/4")
        assert oracle._worker._process is not None
        oracle._worker._process.kill()
        oracle._worker._process.join()

        assert oracle.judge(problem("1/2"), "Answer: 3/6").verdict is Verdict.CENSORED
        assert oracle.judge(problem("1/2"), "Answer: 4/8").verdict is Verdict.CORRECT


def test_closing_ends_the_process() -> None:
    oracle = MathOracle()
    oracle.judge(problem("1/2"), "Answer: 2/4")
    process = oracle._worker._process
    assert process is not None
    pid = process.pid
    oracle.close()
    oracle.close()

    assert oracle._worker._process is None
    assert pid not in {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize(
    "completion",
    [
        "Paris",
        "  PARIS \n",
        "It is in France.\n\nparis.",
        "Answer: Paris",
        "The answer is **Paris**.",
        "'Paris'",
    ],
)
def test_exact_ignores_case_space_labels_and_punctuation(completion: str) -> None:
    assert ExactOracle().judge(problem("Paris"), completion).verdict is Verdict.CORRECT


@pytest.mark.parametrize("completion", ["London", "Paris\nLondon", "It is Paris", "", " \n"])
def test_exact_takes_the_last_line_or_the_whole_completion_only(completion: str) -> None:
    assert ExactOracle().judge(problem("Paris"), completion).verdict is Verdict.INCORRECT


def test_exact_says_what_it_read() -> None:
    assert ExactOracle().judge(problem("Paris"), "Answer: London") == Judgement(
        Verdict.INCORRECT, "London", "it is not 'Paris'"
    )


@pytest.mark.parametrize("name", ["math", "exact"])
def test_an_oracle_is_made_by_its_name(name: str) -> None:
    assert make_oracle(name).name == name


def test_an_unknown_oracle_is_refused_with_the_choices() -> None:
    with pytest.raises(OracleError, match=r"unknown oracle 'maths'; the choices are math .* exact"):
        make_oracle("maths")


@pytest.mark.parametrize("answers", [["18", "#### 1,050"], [r"\boxed{x+1}", r"\frac{1}{2}", "3 eggs", "x"]])
def test_mathematics_is_judged_as_such(answers: list[str]) -> None:
    assert choose_oracle([problem(answer) for answer in answers]).name == "math"


@pytest.mark.parametrize("answers", [["Paris", "18"], ["yes", "perhaps"], ["A", "Z"]])
def test_short_words_are_compared_as_they_stand(answers: list[str]) -> None:
    assert choose_oracle([problem(answer) for answer in answers]).name == "exact"


@pytest.mark.parametrize("answer", ["word " * 100, "first line\nsecond line"])
def test_answers_that_no_oracle_fits_are_refused_with_the_choices(answer: str) -> None:
    with pytest.raises(OracleError, match=r"1 of 2 gold answers .* The choices are math"):
        choose_oracle([problem("18"), problem(answer)])


def test_without_problems_no_oracle_is_chosen() -> None:
    with pytest.raises(OracleError, match="without problems"):
        choose_oracle([])


class FailingOracle(Oracle):
    name = "failing"

    def judge(self, problem: Problem, completion: str) -> Judgement:
        raise RuntimeError(f"no idea about {completion!r} and {problem.answer}")


def test_a_completion_that_was_cut_off_is_censored_even_with_the_right_answer() -> None:
    (judgement,) = judge_all(ExactOracle(), [(problem("18"), "18", True)])

    assert judgement.verdict is Verdict.CENSORED
    assert "cut off" in judgement.explanation


def test_an_oracle_that_raises_gives_censored_with_the_reason() -> None:
    oracle: Oracle = FailingOracle()

    assert judge_all(oracle, [(problem("18"), "x", False)]) == [
        Judgement.failure("oracle failing raised RuntimeError: no idea about 'x' and 18")
    ]


def test_failures_of_an_oracle_are_told_from_completions_that_were_cut_off() -> None:
    judgements = judge_all(FailingOracle(), [(problem("1"), "x", failed) for failed in (False, True, False)])

    assert [judgement.failed for judgement in judgements] == [True, False, True]


def test_what_failed_is_censored_and_nothing_else() -> None:
    assert Judgement.failure("why").verdict is Verdict.CENSORED
    with pytest.raises(ValueError, match="a failed judgement is censored, not correct"):
        Judgement(Verdict.CORRECT, None, "why", failed=True)


def test_judgements_come_in_order() -> None:
    items = [(problem("a"), text, truncated) for text, truncated in [("a", False), ("b", False), ("a", True)]]

    assert [judgement.verdict for judgement in judge_all(ExactOracle(), items)] == [
        Verdict.CORRECT,
        Verdict.INCORRECT,
        Verdict.CENSORED,
    ]
