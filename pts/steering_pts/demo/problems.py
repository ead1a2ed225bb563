"""The planted arithmetic problems: questions, worked solutions, and their split.

Each of the four forms has a right way of working and a flawed one that takes the operations from
left to right. Written solutions choose between the two, sometimes correct themselves, and
sometimes slip in a result; every one of these rates is known, so what a search for pivotal tokens
ought to find is known too.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final, Literal

Form = Literal["sum-product", "bracket-product", "bracket-difference", "two-products"]
Split = Literal["train", "validation", "test"]
Route = Literal["right", "flawed"]

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
SLIP_RATE: Final = 0.02
SLIPS: Final = (-10, -1, 1, 10)
_SPLIT_ENDS: Final[Mapping[Split, float]] = {"train": 0.70, "validation": 0.85, "test": 1.0}


@dataclass(frozen=True, slots=True)
class FormRule:
    """What defines a form.

    A step such as ``"a + x"`` names operands (``a`` to ``d``) and the results of the steps before
    it (``x``, ``y``, ``z`` in order). ``has_plan`` says whether the solution states its strategy
    in words; without it the first operand written is the strategy. ``corrects_early`` puts the
    self-correction right behind the strategy instead of behind the flawed steps.
    """

    question: str
    ranges: Mapping[str, range]
    right: tuple[str, ...]
    flawed: tuple[str, ...]
    share: float
    flawed_rate: float
    corrected_rate: float
    has_plan: bool = True
    corrects_early: bool = False


RULES: Final[Mapping[Form, FormRule]] = {
    "sum-product": FormRule(
        question="{a} + {b} * {c}",
        ranges={"a": range(2, 30), "b": range(2, 10), "c": range(2, 10)},
        right=("b * c", "a + x"),
        flawed=("a + b", "x * c"),
        share=0.3,
        flawed_rate=0.50,
        corrected_rate=0.28,
    ),
    "bracket-product": FormRule(
        question="{a} * ({b} + {c})",
        ranges={"a": range(2, 10), "b": range(2, 16), "c": range(2, 10)},
        right=("b + c", "a * x"),
        flawed=("a * b", "x + c"),
        share=0.3,
        flawed_rate=0.50,
        corrected_rate=0.28,
    ),
    "bracket-difference": FormRule(
        question="{a} - ({b} - {c})",
        ranges={"a": range(18, 50), "b": range(3, 10), "c": range(2, 9)},
        right=("b - c", "a - x"),
        flawed=("a - b", "x - c"),
        share=0.2,
        flawed_rate=0.50,
        corrected_rate=0.28,
        has_plan=False,
    ),
    "two-products": FormRule(
        question="{a} * {b} + {c} * {d}",
        ranges=dict.fromkeys("abcd", range(2, 10)),
        right=("a * b", "c * d", "x + y"),
        flawed=("a * b", "x + c", "y * d"),
        share=0.2,
        flawed_rate=0.28,
        corrected_rate=0.37,
        corrects_early=True,
    ),
}
FORMS: Final[tuple[Form, ...]] = tuple(RULES)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question; ``operands`` are ``a``, ``b``, ``c`` (and ``d``) of its form."""

    form: Form
    operands: tuple[int, ...]

    @property
    def question(self) -> str:
        """The expression, such as ``7 + 5 * 3``."""
        return RULES[self.form].question.format(**_named(self.operands))

    @property
    def answer(self) -> str:
        """The value of the expression in decimal digits."""
        return str(_work(self, "right")[1])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a data set; ``id`` is the head of the question's SHA-256."""

    id: str
    question: str
    answer: str
    form: Form


def split_of(question: str) -> Split:
    """The split a question belongs to, from its SHA-256 alone: 70 % train, 15 %, 15 %."""
    place = int(_digest(question)[:16], 16) / 2**64
    return next(split for split, end in _SPLIT_ENDS.items() if place < end)


@cache
def problems_in(split: Split, form: Form) -> tuple[Problem, ...]:
    """Every well-posed problem of a form that belongs to a split, in order of operands."""
    every = (Problem(form, operands) for operands in itertools.product(*RULES[form].ranges.values()))
    return tuple(p for p in every if _is_well_posed(p) and split_of(p.question) == split)


def draw_problem(split: Split, rng: Random) -> Problem:
    """A random problem of a split, its form drawn by the forms' shares."""
    (form,) = rng.choices(FORMS, weights=[RULES[form].share for form in FORMS])
    return rng.choice(problems_in(split, form))


def rows_of(split: Split, size: int, rng: Random) -> tuple[Row, ...]:
    """A data set of distinct problems in random order.

    Each form gets its share of ``size``, or all its problems where it has fewer.
    """
    chosen: list[Problem] = []
    for form in FORMS:
        pool = problems_in(split, form)
        chosen += rng.sample(pool, min(len(pool), round(size * RULES[form].share)))
    rng.shuffle(chosen)
    return tuple(Row(_digest(p.question)[:16], p.question, p.answer, p.form) for p in chosen)


def find_problem(text: str) -> tuple[Problem, int] | None:
    """The last question written in ``text`` and the offset at which it ends; None without one.

    The steps of a solution never match: an ``=`` stands between any three of their numbers.
    """
    found = list(_ANY_QUESTION.finditer(text))
    if not found:
        return None
    for form, pattern in _QUESTIONS.items():
        if match := pattern.fullmatch(found[-1].group()):
            return Problem(form, tuple(int(number) for number in match.groups())), found[-1].end()
    return None


def write_solution(problem: Problem, rng: Random) -> str:
    """A solution drawn at the planted rates, from ``Plan`` (or the first operand) to the answer."""
    rule = RULES[problem.form]
    if rng.random() >= rule.flawed_rate:
        return _finish(problem, "right", [_plan(rule, "right")], rng)
    if rng.random() >= rule.corrected_rate:
        return _finish(problem, "flawed", [_plan(rule, "flawed")], rng)
    before = [_plan(rule, "flawed")]
    if not rule.corrects_early:
        before += _work(problem, "flawed", rng)[0]
    return _finish(problem, "right", [*before, "Wait, precedence." if rule.has_plan else "Wait,"], rng)


def opening(problem: Problem, route: Route) -> str:
    """The shortest beginning of a solution that settles its strategy.

    ``Plan: precedence`` or ``Plan: left``; without a plan, the first digit of the first operand.
    """
    rule = RULES[problem.form]
    if rule.has_plan:
        return "Plan: precedence" if route == "right" else "Plan: left"
    return _work(problem, route)[0][0][0]


def flawed_beginning(problem: Problem) -> str:
    """A flawed solution, free of slips, up to the place where it may correct itself."""
    rule = RULES[problem.form]
    sentences = [_plan(rule, "flawed")]
    if not rule.corrects_early:
        sentences += _work(problem, "flawed")[0]
    return _join(sentences)


def flawed_working(problem: Problem) -> str:
    """A flawed solution, free of slips, up to but without its answer."""
    return _join([_plan(RULES[problem.form], "flawed"), *_work(problem, "flawed")[0]])


def final_answer(text: str) -> str | None:
    """The number behind the last ``Answer:`` of a solution; None where there is none."""
    match = re.match(r"\s*(\d+)(?!\d)", text.rpartition("Answer:")[2]) if "Answer:" in text else None
    return match.group(1) if match else None


def is_correct(problem: Problem, solution: str) -> bool:
    """Whether the solution's final answer is the value of the expression."""
    return final_answer(solution) == problem.answer


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def _named(operands: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("abcd", operands, strict=False))


def _is_well_posed(problem: Problem) -> bool:
    """Whether the two routes differ in the text that decides and in the answer."""
    if problem.form == "bracket-difference":
        a, b, c = problem.operands
        # With b the first digit of a, both routes would begin with the same token.
        if c >= b or b == a // 10:
            return False
    return _work(problem, "right")[1] != _work(problem, "flawed")[1]


def _work(problem: Problem, route: Route, rng: Random | None = None) -> tuple[list[str], int]:
    """The steps of a route as sentences, and the last result; slips are drawn from ``rng``."""
    rule = RULES[problem.form]
    while True:
        values = _named(problem.operands)
        sentences: list[str] = []
        for name, step in zip("xyz", rule.right if route == "right" else rule.flawed, strict=False):
            left, operator, right = step.split()
            result = _apply(values[left], operator, values[right])
            values[name] = _maybe_slip(result, rng) if rng else result
            sentences.append(f"{values[left]} {operator} {values[right]} = {values[name]}.")
        # A slip may leave too little to subtract from; negative numbers are not written.
        if min(values.values()) >= 0:
            return sentences, values[name]


def _apply(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _maybe_slip(result: int, rng: Random) -> int:
    if rng.random() >= SLIP_RATE:
        return result
    return rng.choice([result + slip for slip in SLIPS if result + slip >= 0] or [result])


def _plan(rule: FormRule, route: Route) -> str:
    if not rule.has_plan:
        return ""
    return "Plan: precedence." if route == "right" else "Plan: left to right."


def _finish(problem: Problem, route: Route, before: list[str], rng: Random) -> str:
    steps, result = _work(problem, route, rng)
    return _join([*before, *steps, f"Answer: {result}"])


def _join(sentences: list[str]) -> str:
    return " ".join(filter(None, sentences))


def _question_pattern(rule: FormRule) -> str:
    return re.sub(r"\\\{[a-d]\\\}", r"(\\d+)", re.escape(rule.question))


_QUESTIONS: Final[Mapping[Form, re.Pattern[str]]] = {
    form: re.compile(_question_pattern(rule)) for form, rule in RULES.items()
}
# The longest form goes first: the end of `2 * 3 + 4 * 5` is itself a question.
_ANY_QUESTION: Final = re.compile(
    "|".join(
        f"(?:{_question_pattern(rule)})"
        for rule in sorted(RULES.values(), key=lambda rule: -len(rule.question))
    )
)
