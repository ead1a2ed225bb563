"""The oracles by name, the choice among them, and judging many completions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.base import Judgement, Oracle, Verdict
from steering_pts.oracles.exact import MAX_CHARACTERS, ExactOracle, is_short_text
from steering_pts.oracles.extraction import gold_answer
from steering_pts.oracles.function import FunctionOracle
from steering_pts.oracles.math import MathOracle, is_mathematics

ORACLES: Final[Mapping[str, Callable[[], Oracle]]] = {"math": MathOracle, "exact": ExactOracle}
_logger = logging.getLogger(__name__)
CHOICES: Final = (
    "math (the gold answer is a number or a formula, perhaps after #### or in \\boxed{}), "
    f"exact (one line of at most {MAX_CHARACTERS} characters), "
    "or any module:function that is called with a problem and a completion"
)


def make_oracle(name: str) -> Oracle:
    """The oracle of that name, or the function `module:function`; whoever makes it closes it.

    Raises:
        OracleError: there is none of that name, or the function can't be imported.
    """
    if ":" in name:
        return FunctionOracle(name)
    if name not in ORACLES:
        raise OracleError(f"unknown oracle {name!r}; the choices are {CHOICES}")
    return ORACLES[name]()


def choose_oracle(problems: Sequence[Problem]) -> Oracle:
    """The oracle that fits the gold answers of all problems; whoever chooses it closes it.

    `math` where every one reads as a number or a formula, else `exact` where every one is short.

    Raises:
        OracleError: none fits, or there are no problems.
    """
    if not problems:
        raise OracleError("without problems there is no oracle to choose")
    if all(is_mathematics(gold_answer(problem.answer)) for problem in problems):
        return MathOracle()
    long = [problem for problem in problems if not is_short_text(problem.answer)]
    if long:
        raise OracleError(
            f"no oracle fits: {len(long)} of {len(problems)} gold answers are neither mathematics nor "
            f"short, the first that of problem {long[0].id} ({long[0].answer!r:.80}). "
            f"The choices are {CHOICES}."
        )
    return ExactOracle()


def judge_all(oracle: Oracle, items: Sequence[tuple[Problem, str, bool]]) -> list[Judgement]:
    """A judgement for each (problem, completion, truncated), in order.

    A truncated completion is censored without asking the oracle, and so is one on which the
    oracle raises; the explanation says why. Neither ever counts as success or failure. How often
    the oracle raised is logged as a warning.
    """
    failures: list[str] = []
    judgements = [_judge(oracle, *item, failures) for item in items]
    if failures:
        _logger.warning("%d of %d completions: %s", len(failures), len(items), failures[0])
    return judgements


def _judge(
    oracle: Oracle, problem: Problem, completion: str, truncated: bool, failures: list[str]
) -> Judgement:
    if truncated:
        return Judgement(Verdict.CENSORED, None, "the completion was cut off before its end")
    try:
        return oracle.judge(problem, completion)
    except Exception as error:  # noqa: BLE001  # an oracle may be anyone's code
        failures.append(f"oracle {oracle.name} raised {type(error).__name__}: {error}")
        return Judgement(Verdict.CENSORED, None, failures[-1])
