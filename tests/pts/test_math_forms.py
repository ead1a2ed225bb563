"""The forms that answers are written in, and the oracle for mathematics on each of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from steering_pts.data import Problem, load_problems
from steering_pts.oracles import MathOracle, Verdict
from steering_pts.oracles.extraction import gold_answer
from tests.support.texts import check_watcher, cut_points

GSM8K = os.environ.get("PTS_GSM8K_TEST")

FORMS = (
    "#### {}",
    "#### {}\n\nQuestion: How many more?\n#### 7777",
    r"So it is \boxed{{{}}}.",
    "$$\\boxed{{{}}}$$",
    "Answer: {}",
    "**Answer:** {}",
    "The final answer is ${}$. I hope it is correct.",
    "The answer is {}.",
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[MathOracle]:
    with MathOracle() as made:
        yield made


def verdict(oracle: MathOracle, gold: str, completion: str) -> Verdict:
    return oracle.judge(Problem("p", "How many?", gold), completion).verdict


def is_right(oracle: MathOracle, gold: str, answer: str, form: str) -> bool:
    judged = verdict(oracle, gold, form.format(answer))
    assert judged is not Verdict.CENSORED
    return judged is Verdict.CORRECT


forms = st.sampled_from(FORMS)
small = st.integers(-999, 999)


# --- numbers ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "{:,}", "{}.0", "{:,}.00", "{} apples", "${:,}", "**{}**", r"{}\text{{ cm}}"]),
    forms,
)
def test_an_integer_is_itself_however_it_is_dressed(
    oracle: MathOracle, number: int, dress: str, form: str
) -> None:
    assert is_right(oracle, str(number), dress.format(number), form)
    assert not is_right(oracle, str(number + 1), dress.format(number), form)
    assert number == 0 or not is_right(oracle, str(-number), dress.format(number), form)


@given(st.decimals(-1000, 1000, places=3), st.integers(0, 4), forms)
def test_zeros_at_the_end_of_a_decimal_do_not_count(
    oracle: MathOracle, number: Decimal, zeros: int, form: str
) -> None:
    assert is_right(oracle, f"{number:f}", f"{number:f}" + "0" * zeros, form)
    assert not is_right(oracle, f"{number + Decimal('0.001'):f}", f"{number:f}", form)


@given(
    st.decimals(1, 9, places=2),
    st.integers(-20, 20),
    st.sampled_from(
        [
            "{0}e{1}",
            "{0}E{1}",
            r"{0} \times 10^{{{1}}}",
            "{0} \u00d7 10^{1}",
            r"{0} \cdot 10^{{{1}}}",
            "{0} * 10^{1}",
        ]
    ),
    forms,
)
def test_scientific_notation_is_the_number_written_out(
    oracle: MathOracle, mantissa: Decimal, exponent: int, notation: str, form: str
) -> None:
    written_out = f"{mantissa.scaleb(exponent):f}"
    notated = notation.format(mantissa, exponent)

    assert is_right(oracle, written_out, notated, form)
    assert is_right(oracle, notated, written_out, form)
    assert not is_right(oracle, f"{mantissa.scaleb(exponent + 1):f}", notated, form)


@settings(max_examples=40)
@given(
    st.integers(-99, 99),
    st.integers(2, 99),
    st.integers(1, 9),
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}", r"\tfrac{{{}}}{{{}}}", "{} / {}"]),
    forms,
)
def test_fractions_are_equal_when_their_values_are(
    oracle: MathOracle, above: int, below: int, factor: int, notation: str, form: str
) -> None:
    answer = notation.format(above * factor, below * factor)

    assert is_right(oracle, f"{above}/{below}", answer, form)
    assert is_right(oracle, rf"\frac{{{above}}}{{{below}}}", answer, form)
    assert not is_right(oracle, f"{above + 1}/{below}", answer, form)


@settings(max_examples=25)
@given(st.integers(1, 50), st.integers(2, 9), st.data(), st.booleans(), forms)
def test_mixed_numbers_are_sums(
    oracle: MathOracle, whole: int, below: int, data: st.DataObject, negative: bool, form: str
) -> None:
    above = data.draw(st.integers(1, below - 1))
    sign = "-" if negative else ""
    value = Fraction(whole * below + above, below)

    for mixed in (f"{sign}{whole} {above}/{below}", rf"{sign}{whole}\frac{{{above}}}{{{below}}}"):
        assert is_right(oracle, f"{sign}{value.numerator}/{value.denominator}", mixed, form)
        assert not is_right(oracle, f"{sign}{whole}", mixed, form)


@settings(max_examples=25)
@given(
    st.integers(1, 500), st.sampled_from(["{}%", "{} %", r"{}\%", "{} percent"]), st.sampled_from(FORMS[:6])
)
def test_a_percentage_is_its_share_or_its_number(
    oracle: MathOracle, percent: int, notation: str, form: str
) -> None:
    assume(percent != 100)
    answer = notation.format(percent)

    assert is_right(oracle, str(percent), answer, form)
    assert is_right(oracle, f"{percent}%", answer, form)
    assert not is_right(oracle, str(percent + 1), answer, form)
    assert not is_right(oracle, str(percent * 10), answer, form)


# --- structures -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(small, min_size=2, max_size=4, unique=True), st.randoms())
def test_sets_have_no_order_and_tuples_have_one(
    oracle: MathOracle, values: list[int], random: object
) -> None:
    other = [*values[1:], values[0]]
    inside, turned = ", ".join(map(str, values)), ", ".join(map(str, other))

    assert is_right(oracle, rf"\{{{inside}\}}", rf"\{{{turned}\}}", r"\boxed{{{}}}")
    assert is_right(oracle, f"({inside})", rf"\left( {inside} \right)", r"\boxed{{{}}}")
    assert not is_right(oracle, f"({inside})", f"({turned})", r"\boxed{{{}}}")


@settings(max_examples=25)
@given(st.integers(-50, 50), st.integers(1, 50))
def test_intervals_differ_by_their_ends(oracle: MathOracle, low: int, width: int) -> None:
    assert is_right(oracle, f"[{low},{low + width})", f"[{low}, {low + width})", r"\boxed{{{}}}")
    assert not is_right(oracle, f"[{low},{low + width})", f"({low}, {low + width})", r"\boxed{{{}}}")
    assert not is_right(oracle, f"[{low},{low + width})", f"[{low}, {low + width + 1})", r"\boxed{{{}}}")


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(2, 30))
def test_roots_are_equal_by_value(oracle: MathOracle, factor: int, radicand: int) -> None:
    for answer in (
        rf"{factor}\sqrt{{{radicand}}}",
        rf"\sqrt{{{factor**2 * radicand}}}",
        f"{factor}\u221a{radicand}",
    ):
        assert is_right(oracle, rf"{factor}\sqrt{{{radicand}}}", answer, r"\boxed{{{}}}")
        assert not is_right(oracle, rf"{factor}\sqrt{{{radicand + 1}}}", answer, r"\boxed{{{}}}")


@settings(max_examples=25)
@given(st.integers(2, 99), st.sampled_from([r"{}\pi", "{}\u03c0", "{} pi", r"{} \cdot \pi"]))
def test_pi_belongs_to_the_number(oracle: MathOracle, factor: int, notation: str) -> None:
    answer = notation.format(factor)

    assert is_right(oracle, rf"{factor}\pi", answer, "Answer: {}")
    assert not is_right(oracle, str(factor), answer, "Answer: {}")
    assert not is_right(oracle, rf"{factor + 1}\pi", answer, "Answer: {}")


@given(
    st.integers(-360, 360),
    st.sampled_from([r"{}^\circ", r"{}^{{\circ}}", "{}\u00b0", "{} degrees", r"{}^\circ\text{{C}}", "{}"]),
    forms,
)
def test_degrees_do_not_count(oracle: MathOracle, angle: int, notation: str, form: str) -> None:
    assert is_right(oracle, rf"{angle}^\circ", notation.format(angle), form)
    assert not is_right(oracle, str(angle + 1), notation.format(angle), form)


@settings(max_examples=25)
@given(small, st.sampled_from("xyzn"), forms)
def test_an_equation_gives_its_right_side(oracle: MathOracle, value: int, letter: str, form: str) -> None:
    assert is_right(oracle, str(value), f"{letter} = {value}", form)
    assert not is_right(oracle, str(value + 1), f"{letter} = {value}", form)


WORDS = ["Evelyn", "Briana", "even", "odd", "Monday", "parabola", "no solution"]


@given(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS),
    st.sampled_from([r"\boxed{{\text{{{}}}}}", r"\boxed{{\textbf{{{}}}}}", r"\boxed{{{}}}", "Answer: {}"]),
    st.sampled_from(["{}", r"\text{{{}}}"]),
)
def test_words_are_compared_as_words(oracle: MathOracle, gold: str, word: str, form: str, field: str) -> None:
    assert is_right(oracle, field.format(gold), word, form) is (gold == word)
    assert is_right(oracle, field.format(gold), word.upper(), form) is (gold == word)


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        (r"\text{(C)}", r"\boxed{C}"),
        ("10", r"\boxed{10 \mathrm{~cm}}"),
        ("10", "Answer: 10 miles per hour."),
        ("10", r"\boxed{\boxed{10}}"),
        ("10", r"\boxed{\text{10}}"),
        ("3/4", "Answer: 3/4 of a cup"),
        (r"\frac{\sqrt{3}}{3}", r"\boxed{\frac{1}{\sqrt{3}}}"),
        (r"\frac{1}{2}", r"\boxed{\frac12}"),
        ("2x+1", r"\boxed{f(x) = 2x+1}"),
        (r"(-\infty,-1)\cup(1,\infty)", r"\boxed{(-\infty, -1) \cup (1, \infty)}"),
        (r"(-3,2)", "\\boxed{(\u20133, 2)}"),
        ("-5", "Answer: \u20135"),
        ("-5", "So x is \u20135"),
        (r"\emptyset", r"\boxed{\varnothing}"),
        (r"\emptyset", "\\boxed{\u2205}"),
        ("2:00", r"\boxed{2:00 \text{ p.m.}}"),
        (r"2:00 \text{ p.m.}", "Answer: 2:00 PM"),
        ("2516_8", r"\boxed{2516_{8}}"),
        ("2516_8", "The answer is 2516 in base 8."),
        ("2516_8", r"\boxed{2516}"),
        (r"AB2_{16}", r"\boxed{ab2_{16}}"),
        ("120", "Answer: 5!"),
        ("5", "Answer: 5!"),
        ("18", "The answer is clearly 18! I am sure."),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"),
        ("5!", r"\boxed{120}"),
        ("70000", r"\boxed{70{,}000}"),
        ("3000000", "The answer is 3 million dollars."),
        ("3", "The answer is 3 million dollars."),
        ("3000000", "They earn 3 million dollars."),
    ],
)
def test_other_ways_to_write_the_same_are_correct(oracle: MathOracle, gold: str, completion: str) -> None:
    assert verdict(oracle, gold, completion) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("12", "Answer: 1 2"),
        ("12", r"\boxed{1,2}"),
        ("10^6", "Answer: 10"),
        ("3:4", r"\boxed{4:3}"),
        ("18", "Answer: 18e3"),
        ("3", "Answer: 3 \u00d7 10^6"),
        ("2", "Answer: 2\u03c0"),
        ("(1,2)", r"\boxed{[1,2]}"),
        ("x=5", r"\boxed{y=6}"),
        ("10", "pages 5\u201311"),
        ("-5", "The result \u2013 5 apples"),
        ("2:00", "Answer: 3:00"),
        (r"2:00 \text{ p.m.}", "Answer: 2:00 a.m."),
        ("14", r"\boxed{2:00 \text{ p.m.}}"),
        ("2516_8", r"\boxed{2516_9}"),
        ("2516_8", r"\boxed{2516 \text{ (base 9)}}"),
        ("10_8", r"\boxed{8}"),
        ("24", "Answer: 5!"),
        ("5", "#### 5 more than 3"),
        ("5", "The answer is 5 squared."),
    ],
)
def test_what_only_looks_alike_is_incorrect(oracle: MathOracle, gold: str, completion: str) -> None:
    assert verdict(oracle, gold, completion) is Verdict.INCORRECT


# --- words ------------------------------------------------------------------------------------------------------------

WORDED = {
    "5": [
        "approximately {}", "exactly {}", "therefore {}", "therefore: {}", "clearly {} apples", "about {}", "~{}",
        "option {}", "{}, not 6", "not 6 but {}", "{}, because 2 + 3 is that", "{} dollars per 2 days", "five ({})",
        "3 less than 8, so {}", "2 more than 3, which is {}", "${} for 16 glasses", "that Kylar pays ${} for 3 glasses",
        "2 + 3 = {} apples", "2+3={} apples", "{}, which is 5.0", "as follows: {}", "{}: 2 eggs and 3 more",
        "that she has {} apples", "${}$ dollars",
    ],
    "-5": ["exactly {}", "negative 5", "exactly negative 5"],
    "18.50": ["18 dollars and 50 cents", "$18 and 50 cents", "that 18 dollars 50 cents are left"],
    "18.5": ["$18$ dollars and $50$ cents"],
    "18.05": ["18 dollars and 5 cents"],
    "2.5": ["2 and a half hours", "2 and a half"],
    "90%": ["18 out of 20, so {}"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "words"), [(gold, words) for gold, several in WORDED.items() for words in several]
)
def test_the_answer_is_read_from_the_words_around_it(oracle: MathOracle, gold: str, words: str) -> None:
    said = words.format(gold)

    assert verdict(oracle, gold, f"The answer is {said}.") is Verdict.CORRECT
    for other in {number for number in re.findall(r"\d+", said) if number != gold.strip("-%")} - {"5"}:
        assert verdict(oracle, other, f"The answer is {said}.") is Verdict.INCORRECT


@pytest.mark.parametrize(
    "words",
    [
        "2 hours and 30 minutes",
        "$2$ hours and $30$ minutes",
        "18 out of 20",
        "1 in 5",
        "one in 5",
        "3 for every 4",
        "5 apples and 6 pears",
        "that she sold 9 in the morning and 18 in the evening",
        "between 10 and 12 apples",
        "10 to 12 apples",
        "half of 10",
        "5 + x apples",
        "18 eggs, so 36 dollars",
        "x = 5 or x = 6",
        "3 feet 6 inches",
        "7:30 in the evening",
        "not 5",
    ],
)
def test_several_numbers_that_nothing_decides_between_equal_none(oracle: MathOracle, words: str) -> None:
    for form in ("The answer is {}.", "Answer: {}\n"):
        for number in {*re.findall(r"\d+", words), "1"}:
            assert verdict(oracle, number, form.format(words)) is Verdict.INCORRECT


@given(
    st.integers(1, 10**6),
    st.integers(1, 99),
    st.sampled_from(["{} dollars and {} cents", "${} and {} cents"]),
)
def test_dollars_and_cents_are_one_amount(oracle: MathOracle, dollars: int, cents: int, words: str) -> None:
    said = words.format(dollars, cents)

    for form in FORMS:
        if "${}$" not in form:
            assert is_right(oracle, f"{dollars}.{cents:02}", said, form)
            assert not is_right(oracle, str(dollars), said, form)


@pytest.mark.parametrize(
    ("gold", "line"),
    [("18", "18, because"), ("18", "18 dollars, not 17"), ("18.5", "18 dollars and 50 cents")],
)
def test_words_behind_the_number_of_an_answer_line_are_read_too(
    oracle: MathOracle, gold: str, line: str
) -> None:
    assert verdict(oracle, gold, f"#### {line}") is Verdict.CORRECT


# --- GSM8K ------------------------------------------------------------------------------------------------------------


@st.composite
def gsm8k_solutions(draw: st.DrawFn) -> str:
    """A worked solution in GSM8K's layout: steps with calculator annotations, and the answer's line."""
    lines = []
    total = draw(st.integers(1, 500))
    for _ in range(draw(st.integers(1, 4))):
        step = draw(st.integers(2, 40))
        sign, result = draw(st.sampled_from([("+", total + step), ("*", total * step), ("-", total - step)]))
        lines.append(f"That makes {total}{sign}{step}=$<<{total}{sign}{step}={result}>>{result:,} in all.")
        total = result
    return "\n".join([*lines, f"#### {draw(st.sampled_from(['{}', '{:,}', '${}'])).format(total)}"])


def number_of(solution: str) -> Decimal:
    return Decimal(gold_answer(solution))


@given(gsm8k_solutions(), gsm8k_solutions())
def test_a_worked_solution_is_correct_for_its_own_row_only(oracle: MathOracle, own: str, other: str) -> None:
    assert verdict(oracle, own, own) is Verdict.CORRECT
    expected = Verdict.CORRECT if number_of(own) == number_of(other) else Verdict.INCORRECT
    assert verdict(oracle, own, other) is expected


@given(gsm8k_solutions(), gsm8k_solutions())
def test_a_solution_ends_with_its_first_answer_line(oracle: MathOracle, own: str, imagined: str) -> None:
    goes_on = f"{own}\n\nQuestion: And how many now?\nAnswer: {imagined}"

    assert verdict(oracle, own, goes_on) is Verdict.CORRECT


@pytest.mark.skipif(GSM8K is None, reason="PTS_GSM8K_TEST does not name the file of GSM8K's test rows")
def test_every_gsm8k_row_agrees_with_its_gold_answer_and_with_no_other(oracle: MathOracle) -> None:
    problems = load_problems(Path(str(GSM8K)))
    numbers = [number_of(problem.answer) for problem in problems]
    solutions = [problem.answer for problem in problems]

    assert len(problems) == 1319
    wrong = [
        (row, offset)
        for row, problem in enumerate(problems)
        for offset in (0, 1, 2, 3, 5, 8, 13, 400)
        if (oracle.judge(problem, solutions[(row + offset) % len(problems)]).verdict is Verdict.CORRECT)
        is not (numbers[row] == numbers[(row + offset) % len(problems)])
    ]
    assert wrong == []


# --- closed answers ---------------------------------------------------------------------------------------------------

PIECES = ["#### 18", "#### ", "####", "##", "\n", "\n\n", "18", "$", " ", "#### Step 1: add", r"\boxed{4}"]
PIECES += [
    "The answer is 7.",
    "Question: x?",
    "#### 3#### 4",
    "!",
    "Evelyn",
    "#### Solution",
    "\r\n",
    ",000",
    "x",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


@settings(max_examples=300)
@given(texts, texts, cut_points)
def test_nothing_changes_a_verdict_once_it_is_closed(
    oracle: MathOracle, text: str, continuation: str, points: list[int]
) -> None:
    check_watcher(oracle, Problem("p", "?", "18"), text, continuation, points)


def test_an_answer_line_is_closed_when_it_has_ended_and_not_before() -> None:
    watcher = MathOracle().watcher(Problem("p", "?", "18"))

    assert [watcher(piece) for piece in ["5 + 13 ", "= 18\n##", "## 1", "8", "\n", "more"]] == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "text", [r"\boxed{18}" + "\n", "Answer: 18.\n", "18\n", "#### Step 1\n", "####\n18\n"]
)
def test_other_forms_stay_open(text: str) -> None:
    assert MathOracle().watcher(Problem("p", "?", "18"))(text) is False
