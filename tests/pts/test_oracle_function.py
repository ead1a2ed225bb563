from __future__ import annotations

import logging
from pathlib import Path

import pytest

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict
from steering_pts.oracles.base import Oracle
from steering_pts.oracles.function import FunctionOracle
from steering_pts.oracles.registry import judge_all, make_oracle

PROBLEM = Problem("p", "1 + 1?", "2")
JUDGEMENT = Judgement(Verdict.INCORRECT, "3", "3 is not 2")


def says_true(_problem: Problem, _completion: str) -> bool:
    return True


def says_false(_problem: Problem, _completion: str) -> bool:
    return False


def says_nothing(_problem: Problem, _completion: str) -> None:
    return None


def says_one(_problem: Problem, _completion: str) -> int:
    return 1


def explains(_problem: Problem, _completion: str) -> Judgement:
    return JUDGEMENT


def compares(problem: Problem, completion: str) -> bool:
    return problem.answer == completion


def raises(_problem: Problem, completion: str) -> bool:
    raise ZeroDivisionError(completion)


no_function = 7


def oracle(name: str) -> Oracle:
    return make_oracle(f"tests.pts.test_oracle_function:{name}")


@pytest.mark.parametrize(
    ("function", "verdict"),
    [("says_true", Verdict.CORRECT), ("says_false", Verdict.INCORRECT), ("says_nothing", Verdict.CENSORED)],
)
def test_true_false_and_none_are_the_three_verdicts(function: str, verdict: Verdict) -> None:
    assert oracle(function).judge(PROBLEM, "2").verdict is verdict


def test_a_judgement_is_taken_as_it_is() -> None:
    assert oracle("explains").judge(PROBLEM, "3") is JUDGEMENT


def test_the_function_gets_problem_and_completion() -> None:
    judged = oracle("compares")

    assert [judged.judge(PROBLEM, text).verdict for text in ("2", "3")] == [
        Verdict.CORRECT,
        Verdict.INCORRECT,
    ]


def test_any_other_answer_is_an_error_and_not_a_verdict() -> None:
    with pytest.raises(TypeError, match="answered 1; expected True, False, None or a Judgement"):
        oracle("says_one").judge(PROBLEM, "2")


def test_a_function_that_raises_is_censored_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        judgements = judge_all(
            oracle("raises"), [(PROBLEM, "a", False), (PROBLEM, "b", True), (PROBLEM, "c", False)]
        )

    assert {judgement.verdict for judgement in judgements} == {Verdict.CENSORED}
    (message,) = caplog.messages
    assert message.startswith("2 of 3 completions: oracle tests.pts.test_oracle_function:raises raised ")
    assert message.endswith("ZeroDivisionError: a")


def test_the_name_is_that_by_which_it_was_made() -> None:
    assert oracle("compares").name == "tests.pts.test_oracle_function:compares"


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module_at_all:f",
        "tests.pts.test_oracle_function:no_such_function",
        "tests.pts.test_oracle_function:",
        ":f",
        "..relative:f",
    ],
)
def test_what_cannot_be_imported_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(OracleError, match=f"^oracle '{name}' can't be imported: "):
        make_oracle(name)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(OracleError, match="is a int, not a function"):
        oracle("no_function")


@pytest.mark.parametrize("source", ["def broken(:\n", "1 / 0\n", "import no_such_module_at_all\n"])
def test_a_module_that_cannot_be_run_is_refused_in_one_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_oracle_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(OracleError, match="can't be imported: ") as error:
        make_oracle(f"{name}:f")

    assert "\n" not in str(error.value)


def test_modules_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "oracle_of_mine.py").write_text(
        "def f(problem, completion):\n    return True\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])

    assert FunctionOracle("oracle_of_mine:f").judge(PROBLEM, "").verdict is Verdict.CORRECT
