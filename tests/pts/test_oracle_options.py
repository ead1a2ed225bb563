from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import oracle_for, oracle_of
from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import registry
from steering_pts.oracles.base import Judgement, Oracle, Verdict
from steering_pts.oracles.options import check_options
from steering_pts.oracles.registry import check_fit, make_oracle, oracle_of_settings, oracle_settings
from steering_pts.settings import JsonValue
from tests.support.pts import Ended, discover_arguments, run_pts, write_problems

REAL_ORACLES = registry.ORACLES
PROBLEM = Problem("p", "Q", "18")


class Fussy(Oracle):
    """Takes options of several kinds, one of which must be given."""

    name = "fussy"

    def __init__(
        self,
        word: str,
        count: Annotated[int, Field(ge=1)] = 3,
        how: Literal["first", "last"] = "last",
        strict: bool = False,
    ) -> None:
        self.values = (word, count, how, strict)

    @property
    def options(self) -> Mapping[str, JsonValue]:
        return dict(zip(("word", "count", "how", "strict"), self.values, strict=True))

    def judge(self, problem: Problem, completion: str) -> Judgement:
        return Judgement(Verdict.CORRECT, None, "fine")

    def misfit(self, problem: Problem) -> str | None:
        return "it is odd" if "odd" in problem.question else None


@pytest.fixture(autouse=True)
def fussy_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ORACLES", {**registry.ORACLES, "fussy": Fussy})


def test_the_documentation_lists_every_oracle_with_all_its_options() -> None:
    text = (Path(__file__).parents[2] / "docs" / "oracles.md").read_text(encoding="utf-8")
    table = {
        row[1].strip(): row[3]
        for line in text.splitlines()
        if len(row := line.split("|")) == 5 and "`" in row[1]
    }

    for name, make in REAL_ORACLES.items():
        options = [f"`{option}`" for option in inspect.signature(make).parameters]
        assert table[f"`{name}`"].strip() == (", ".join(options) or "none")


def test_options_are_read_as_their_annotations_say() -> None:
    oracle = make_oracle("fussy", assignments=["word=a=b ", "count=5", "how=first", "strict=yes"])

    assert isinstance(oracle, Fussy)
    assert oracle.values == ("a=b ", 5, "first", True)


def test_options_that_are_left_out_have_their_defaults() -> None:
    oracle = make_oracle("fussy", {"word": "x"})

    assert isinstance(oracle, Fussy)
    assert oracle.values == ("x", 3, "last", False)


def test_all_that_is_wrong_with_options_is_said_at_once() -> None:
    with pytest.raises(OracleError) as error:
        make_oracle(
            "fussy", assignments=["count=0", "how=middle", "wort=a", "strict", "strict=1", "strict=0"]
        )

    assert str(error.value).splitlines() == [
        "oracle 'fussy':",
        "  'strict' is no option; expected NAME=VALUE",
        "  option 'count' is '0': input should be greater than or equal to 1",
        "  option 'how' is 'middle': input should be 'first' or 'last'",
        "  option 'strict' is given twice",
        "  option 'word' is missing (--oracle-option word=...)",
        "  there is no option 'wort'; expected word, count, how, strict",
    ]


def test_an_oracle_without_options_says_so() -> None:
    with pytest.raises(OracleError, match=r"^oracle 'exact': there is no option 'x'; it takes none$"):
        make_oracle("exact", assignments=["x=1"])


def test_a_function_takes_no_options() -> None:
    with pytest.raises(OracleError, match="there is no option 'x'; it takes none"):
        make_oracle("tests.support.oracles:starts_in_ascii", assignments=["x=1"])


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_the_limit_of_math_is_a_time(seconds: str) -> None:
    with pytest.raises(OracleError, match=r"^oracle 'math': option 'seconds' is "):
        make_oracle("math", assignments=[f"seconds={seconds}"])


def test_a_function_with_plain_arguments_gets_what_was_given() -> None:
    def make(first: str, second: int | None = None) -> None:
        pass

    assert check_options("any", make, {"first": "1", "second": None}) == {"first": "1", "second": None}


def test_the_options_of_the_oracle_that_the_data_choose_are_checked_too() -> None:
    expected = "oracle 'math': there is no option 'pattern'; expected seconds"
    with pytest.raises(OracleError, match=expected), oracle_for(None, [PROBLEM], ["pattern=x"]):
        pass


def test_an_oracle_is_made_again_from_its_settings() -> None:
    settings = oracle_settings(make_oracle("fussy", assignments=["word=w", "count=7"]))

    assert settings == {
        "oracle": "fussy",
        "oracle.word": "w",
        "oracle.count": 7,
        "oracle.how": "last",
        "oracle.strict": False,
    }
    again = oracle_of_settings({"model": "m", **settings})
    assert oracle_settings(again) == settings


def test_problems_that_an_oracle_cannot_judge_are_named_before_any_work() -> None:
    problems = [Problem(str(i), "odd" if i % 2 else "even", "1") for i in range(50)]

    with pytest.raises(OracleError) as error:
        check_fit(Fussy("w"), problems)

    lines = str(error.value).splitlines()
    assert lines[0] == "oracle 'fussy' does not fit 25 of 50 problems:"
    assert lines[1] == "  problem 1: it is odd"
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 22


def discover(run: Path, model: Path, *more: str) -> Ended:
    data = write_problems(run.with_name("problems.jsonl"), 2)
    return run_pts(*discover_arguments(run, model, data, *more))


def test_a_run_keeps_its_oracle_with_the_options(ending_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--oracle", "fussy", "--oracle-option", "word=w", "--oracle-option", "count=2")

    assert discover(run, ending_folder, *options).code == 0
    with RunFolder(run).read() as ledger:
        settings = ledger.settings()
        with oracle_of(ledger, [PROBLEM]) as oracle:
            assert isinstance(oracle, Fussy)
            assert oracle.values == ("w", 2, "last", False)
    assert {name: value for name, value in settings.items() if name.startswith("oracle")} == {
        "oracle": "fussy",
        "oracle.word": "w",
        "oracle.count": 2,
        "oracle.how": "last",
        "oracle.strict": False,
    }


def test_a_run_is_not_continued_with_other_options(ending_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert discover(run, ending_folder, "--oracle", "fussy", "--oracle-option", "word=w").code == 0

    ended = discover(run, ending_folder, "--oracle", "fussy", "--oracle-option", "word=v")

    assert 'oracle.word was "w" and is now "v"' in ended.error()


def test_wrong_options_leave_nothing(ending_folder: Path, tmp_path: Path) -> None:
    ended = discover(tmp_path / "run", ending_folder, "--oracle", "fussy", "--oracle-option", "word")

    assert ended.code == 2
    assert "'word' is no option; expected NAME=VALUE" in ended.err
    assert not (tmp_path / "run").exists()
