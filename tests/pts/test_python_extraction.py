from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.errors import OracleError
from steering_pts.oracles.python.extraction import ProgramWatcher, extract_program
from steering_pts.oracles.python.problem_tests import problem_tests
from tests.support.programs import PROMPT, TEXTS, human_eval_problem, mbpp_problem, problem_with
from tests.support.texts import cut, cut_points

F = problem_tests(problem_with("assert f(2) == 4"))
HUMAN_EVAL = problem_tests(human_eval_problem(PROMPT, "def check(c):\n    assert c(2) == 4\n", "f"))
TWICE = "def f(x):\n    return 2 * x\n"


def block(content: str, language: str = "python") -> str:
    return f"```{language}\n{content.rstrip()}\n```\n"


# Which program.


def test_the_first_closed_block_that_defines_the_function_is_the_program() -> None:
    other = block("def f(x):\n    return x + x\n")
    text = f"Try:\n{block('print(1)')}So:\n{block(TWICE)}or\n{other}"

    assert extract_program(text, F) == TWICE


def test_blocks_of_other_languages_are_none() -> None:
    assert extract_program(block("def f(x) return 2", "ruby") + block(TWICE, "py"), F) == TWICE


def test_a_fence_may_be_of_tildes_longer_or_unnamed() -> None:
    assert extract_program(f"~~~\n{TWICE}~~~", F) == TWICE
    assert extract_program(f"````python\n{TWICE}```\n````", F) == f"{TWICE}```\n"


def test_where_no_block_defines_all_names_all_blocks_are_the_program() -> None:
    tests = problem_tests(problem_with("assert f(A()) == 4"))

    text = block("class A: pass\n") + "and\n" + block(TWICE)

    assert extract_program(text, tests) == f"class A: pass\n\n{TWICE}"


def test_the_last_block_may_be_without_its_closing_fence() -> None:
    assert extract_program(f"Here:\n```python\n{TWICE.rstrip()}", F) == TWICE


def test_a_text_without_blocks_is_the_program() -> None:
    assert extract_program(TWICE, F) == TWICE


@pytest.mark.parametrize("text", ["", "  \n\n", "```python\n```", "```\n"])
def test_an_empty_text_or_block_is_no_program(text: str) -> None:
    assert extract_program(text, F) is None


def test_an_indented_text_continues_the_prompt() -> None:
    assert extract_program("    return 2 * x\n", HUMAN_EVAL) == f"{PROMPT}    return 2 * x\n"


def test_a_continuation_ends_before_the_first_line_that_is_not_indented() -> None:
    text = "    y = [\n        1,\n]\n    return 2 * x\n\nprint(f(1))\n    never()\n"

    assert extract_program(text, HUMAN_EVAL) == f"{PROMPT}    y = [\n        1,\n]\n    return 2 * x\n\n"


def test_a_block_that_holds_only_the_body_continues_the_prompt() -> None:
    assert extract_program(block("    return 2 * x\n"), HUMAN_EVAL) == f"{PROMPT}    return 2 * x\n"


def test_before_a_whole_function_stand_the_imports_of_the_prompt() -> None:
    assert extract_program(block(TWICE), HUMAN_EVAL) == f"from typing import List\n\n\n{TWICE}"
    assert extract_program(TWICE, HUMAN_EVAL) == f"from typing import List\n\n\n{TWICE}"


@pytest.mark.parametrize(
    "code", ["def f(x): ...", "async def f(x): ...", "class f: ...", "f = abs", "f: object = abs"]
)
def test_a_name_is_defined_by_a_statement_at_the_beginning_of_a_line(code: str) -> None:
    assert extract_program(block("g = 1\n") + block(f"{code}\n"), F) == f"{code}\n"


@pytest.mark.parametrize("code", ["    f = 1", "f == 1", "fx = 1", "def g(f): ...", "# def f(x): ..."])
def test_a_name_is_not_defined_elsewhere(code: str) -> None:
    assert extract_program(block(f"{code}\n") + block(TWICE), F) == TWICE


# When it is final.


def test_a_watcher_closes_with_the_block_that_decides() -> None:
    watcher = ProgramWatcher(F)

    assert not watcher(block("g = 1"))
    assert not watcher(f"```python\n{TWICE}``")
    assert not watcher("`")  # it might become the fence of something longer
    assert watcher("\n")
    assert watcher("anything")


@given(TEXTS, TEXTS, cut_points)
def test_once_closed_no_continuation_changes_the_program(
    text: str, continuation: str, points: list[int]
) -> None:
    for tests in (F, HUMAN_EVAL):
        watcher, read, closed = ProgramWatcher(tests), "", False
        for piece in cut(text, points):
            read += piece
            was_closed, closed = closed, watcher(piece)
            assert closed or not was_closed
            if closed:
                program = extract_program(read, tests)
                assert program == extract_program(read + continuation, tests) == extract_program(text, tests)
        assert closed is ProgramWatcher(tests)(text)


@given(st.text())
def test_every_text_has_a_program_or_none(text: str) -> None:
    for tests in (F, HUMAN_EVAL):
        program = extract_program(text, tests)
        assert program is None or program.strip()


# Which tests.


def test_human_eval_has_its_own_word_on_what_the_prompt_defines() -> None:
    assert HUMAN_EVAL.suite.preamble == PROMPT
    assert HUMAN_EVAL.suite.names == ("f",)
    assert HUMAN_EVAL.suite.tests.endswith("\n\ncheck(f)\n")


def test_mbpp_runs_imports_and_setup_before_its_list() -> None:
    tests = problem_tests(mbpp_problem(["assert f(2) == 4", "assert f(n) == 4"], "n = 2", ["import math"]))

    assert tests.suite.preamble == "import math\nn = 2"
    assert tests.suite.tests == "assert f(2) == 4\nassert f(n) == 4\n"
    assert tests.wanted == ("f",)


def test_names_are_wanted_that_nothing_else_defines() -> None:
    tests = problem_tests(
        problem_with(
            """
            from fractions import Fraction
            def helper(y):
                return [z for z in y]
            for i in range(3):
                assert f(helper([i])) == g(Fraction(1))
            try:
                A().method()
            except Problem as error:
                assert error
            """
        )
    )

    assert tests.wanted == ("A", "Problem", "f", "g")


def test_modules_are_the_standard_librarys_and_never_the_programs() -> None:
    tests = problem_tests(problem_with("assert math.isclose(f(2), copy(4))"))

    assert tests.suite.modules == ("math",)
    assert tests.wanted == ("copy", "f")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (problem_with("18 apples"), "invalid"),
        (problem_with("18"), "'18' tests nothing"),
        (problem_with("assert 1 == 1"), "asks nothing of the program"),
        (mbpp_problem([]), "test_list is empty"),
        (mbpp_problem(["assert f("]), "was never closed"),
        (human_eval_problem(PROMPT, "def check(c): ...", "f()"), r"entry_point is 'f\(\)', which is no name"),
    ],
)
def test_a_problem_without_tests_is_refused_with_what_is_expected(problem: object, reason: str) -> None:
    with pytest.raises(OracleError, match=f"(?s){reason}.*expected are the fields test and entry_point"):
        problem_tests(problem)  # type: ignore[arg-type]
