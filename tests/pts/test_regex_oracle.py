from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict, make_oracle
from steering_pts.oracles.regex import RegexOracle
from tests.support.texts import check_watcher, cut_points

PROBLEM = Problem("p", "How many?", "18")
SLOW = "(a|aa)+$"
SLOW_TEXT = "a" * 60 + "b"


def verdict(oracle: RegexOracle, completion: str, gold: str = "18") -> Verdict:
    return oracle.judge(Problem("p", "?", gold), completion).verdict


def test_the_last_match_counts_unless_the_first_is_asked_for() -> None:
    text = "Answer: 17\nAnswer: 18"

    assert RegexOracle(r"Answer: (\d+)").judge(PROBLEM, text) == Judgement(
        Verdict.CORRECT, "18", "it equals the gold answer"
    )
    assert RegexOracle(r"Answer: (\d+)", which="first").judge(PROBLEM, text) == Judgement(
        Verdict.INCORRECT, "17", "it is not '18'"
    )


@pytest.mark.parametrize("answer", ["New York", " new  york", "**New York**", '"NEW YORK."'])
def test_answers_are_compared_as_exact_compares_them(answer: str) -> None:
    assert verdict(RegexOracle("Answer:(.*)"), f"Answer:{answer}", "New York") is Verdict.CORRECT


def test_without_a_match_a_completion_is_incorrect() -> None:
    assert RegexOracle("Answer: (.*)").judge(PROBLEM, "18") == Judgement(
        Verdict.INCORRECT, None, "the pattern does not match"
    )


def test_without_groups_a_match_is_enough() -> None:
    oracle = RegexOracle("(?i)refuse|can't help")

    assert verdict(oracle, "I REFUSE to.") is Verdict.CORRECT
    assert verdict(oracle, "Gladly.") is Verdict.INCORRECT


def test_the_group_named_answer_goes_before_the_first() -> None:
    assert verdict(RegexOracle(r"(\w+) is (?P<answer>\d+)"), "total is 18") is Verdict.CORRECT


def test_the_first_group_that_took_part_is_the_answer() -> None:
    oracle = RegexOracle(r"a=(\d+)|b=(\d+)")

    assert verdict(oracle, "b=18") is Verdict.CORRECT
    assert verdict(oracle, "a=18") is Verdict.CORRECT


def test_a_match_without_any_group_does_not_count() -> None:
    assert verdict(RegexOracle(r"so (\d+)?"), "so 18, or so ") is Verdict.CORRECT


def test_a_pattern_of_its_own_finds_the_gold_answer() -> None:
    oracle = RegexOracle(r"Answer: (\d+)", gold=r"#### (\d+)")
    worked = Problem("p", "?", "9 * 2 = 18\n#### 18")

    assert oracle.judge(worked, "Answer: 18").verdict is Verdict.CORRECT
    assert oracle.misfit(worked) is None
    assert oracle.misfit(PROBLEM) == "the gold pattern finds nothing in its answer '18'"
    with pytest.raises(OracleError, match="the gold pattern finds nothing in '18'"):
        oracle.judge(PROBLEM, "Answer: 18")


def test_with_lines_a_pattern_sees_one_at_a_time() -> None:
    whole, lines = (RegexOracle(r"is\s+(\d+)", scope=scope) for scope in ("text", "line"))

    assert verdict(whole, "it is\n18") is Verdict.CORRECT
    assert verdict(lines, "it is\n18") is Verdict.INCORRECT
    assert verdict(lines, "it is 17\nno, it is 18\nreally") is Verdict.CORRECT


@pytest.mark.parametrize("scope", ["text", "line"])
@pytest.mark.parametrize("which", ["last", "first"])
def test_a_pattern_that_backtracks_without_end_is_censored(which: str, scope: str) -> None:
    oracle = make_oracle("regex", {"pattern": SLOW, "which": which, "scope": scope, "seconds": 0.2})

    assert oracle.judge(PROBLEM, SLOW_TEXT) == Judgement.failure("the pattern took longer than 0.2 s")


def test_a_gold_pattern_that_backtracks_without_end_is_a_misfit() -> None:
    oracle = RegexOracle("x", gold=SLOW, seconds=0.2)

    assert (
        oracle.misfit(Problem("p", "?", SLOW_TEXT)) == "the gold pattern took longer than 0.2 s in its answer"
    )


def test_malformed_patterns_are_all_named_at_once() -> None:
    with pytest.raises(OracleError) as error:
        make_oracle("regex", assignments=["pattern=(", "gold=[", "which=middle"])

    assert [line.partition(":")[0].strip() for line in str(error.value).splitlines()] == [
        "oracle 'regex'",
        "option 'gold' is '['",
        "option 'pattern' is '('",
        "option 'which' is 'middle'",
    ]


def test_a_malformed_pattern_is_refused_from_python_too() -> None:
    with pytest.raises(OracleError, match=r"the pattern '\(' can't be used: missing \)"):
        RegexOracle("(")


def test_the_pattern_must_be_given() -> None:
    with pytest.raises(OracleError, match="option 'pattern' is missing"):
        make_oracle("regex")


def test_its_options_make_it_again() -> None:
    options = {"pattern": "a(b)", "gold": None, "which": "first", "scope": "line", "seconds": 2.0}

    assert make_oracle("regex", options).options == options


@pytest.mark.parametrize(
    ("pattern", "which", "scope"),
    [("a", "last", "text"), ("(a)", "first", "text"), ("(a)", "last", "line"), ("(a)", "last", "text")],
)
def test_what_a_continuation_can_change_is_never_closed(pattern: str, which: str, scope: str) -> None:
    oracle = make_oracle("regex", {"pattern": pattern, "which": which, "scope": scope})

    assert oracle.watcher(PROBLEM) is None


PATTERNS = [r"(\d+)", r"^(\d+)$", r"a(?!.*b)(.*)", r"(?:a(.*b)?)", r"(x)?\d", r"\d+(?=.*a)"]
texts = st.text(alphabet="ab1 8x\n", max_size=30)


@given(st.sampled_from(PATTERNS), st.sampled_from(["1", "18", "8"]), texts, texts, cut_points)
def test_nothing_changes_a_verdict_once_it_is_closed(
    pattern: str, gold: str, text: str, continuation: str, points: list[int]
) -> None:
    oracle = RegexOracle(pattern, which="first", scope="line")

    check_watcher(oracle, Problem("p", "?", gold), text, continuation, points)


def test_the_first_line_that_matches_closes_when_it_has_ended() -> None:
    watcher = RegexOracle(r"Answer: (\d+)", which="first", scope="line").watcher(PROBLEM)

    assert watcher is not None
    assert [watcher(piece) for piece in ["Answer: ", "1", "8\n", "x"]] == [False, False, True, True]


def test_without_groups_the_first_line_that_matches_closes_too() -> None:
    watcher = RegexOracle("yes", scope="line").watcher(PROBLEM)

    assert watcher is not None
    assert watcher("so\nyes\n")
