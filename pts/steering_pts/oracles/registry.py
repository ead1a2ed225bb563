"""The oracles by name, the choice among them, and judging many completions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from steering_pts.data import Problem, suggest_oracle
from steering_pts.errors import MAX_SHOWN_PROBLEMS, OracleError
from steering_pts.oracles.base import Judgement, Oracle, Verdict
from steering_pts.oracles.choice import ChoiceOracle
from steering_pts.oracles.exact import MAX_CHARACTERS, ExactOracle, is_short_text
from steering_pts.oracles.extraction import gold_answer
from steering_pts.oracles.function import FunctionOracle
from steering_pts.oracles.judge import JudgeOracle
from steering_pts.oracles.math import MathOracle, is_mathematics
from steering_pts.oracles.options import check_options
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.regex import RegexOracle
from steering_pts.settings import JsonValue

ORACLES: Final[Mapping[str, Callable[..., Oracle]]] = {
    "math": MathOracle,
    "exact": ExactOracle,
    "regex": RegexOracle,
    "choice": ChoiceOracle,
    "judge": JudgeOracle,
    "python": PythonOracle,
}
_logger = logging.getLogger(__name__)
CHOICES: Final = (
    "math (the gold answer is a number or a formula, perhaps after #### or in \\boxed{}), "
    f"exact (one line of at most {MAX_CHARACTERS} characters), "
    "regex (a pattern of your own finds the answer), "
    "choice (one of several choices, or yes and no), "
    "judge (a language model behind an OpenAI-compatible endpoint), "
    "python (the program in a completion must pass the problem's tests), "
    "or any module:function that is called with a problem and a completion"
)
_PREFIX: Final = "oracle."


def make_oracle(
    name: str, options: Mapping[str, object] | None = None, assignments: Sequence[str] = ()
) -> Oracle:
    """The oracle of that name, or the function `module:function`; whoever makes it closes it.

    Args:
        name: One of `ORACLES`, or `module:function`.
        options: Its options; those left out have the defaults of its constructor.
        assignments: More of them, as texts `NAME=VALUE`.

    Raises:
        OracleError: there is none of that name, the function can't be imported, or the options are
            not what the oracle takes.
    """
    if ":" in name:
        check_options(name, _no_options, options or {}, assignments)
        return FunctionOracle(name)
    if name not in ORACLES:
        raise OracleError(f"unknown oracle {name!r}; the choices are {CHOICES}")
    make = ORACLES[name]
    return make(**check_options(name, make, options or {}, assignments))


def choose_oracle(problems: Sequence[Problem], assignments: Sequence[str] = ()) -> Oracle:
    """The oracle that fits the gold answers of all problems; whoever chooses it closes it.

    What the layout of the data suggests comes first (`python` for problems with tests); else `choice` where every
    problem offers choices and its answer is one of them, `math` where every answer reads as a number or a formula,
    and `exact` where every one is short.

    Raises:
        OracleError: none fits, there are no problems, or the one that fits does not take the options.
    """
    if not problems:
        raise OracleError("without problems there is no oracle to choose")
    return make_oracle(_fitting(problems), assignments=assignments)


def check_fit(oracle: Oracle, problems: Sequence[Problem]) -> None:
    """Makes sure that the oracle can judge completions of every problem.

    Raises:
        OracleError: it can't; the message names the problems, the first 20, and says why.
    """
    misfits = [
        f"problem {problem.id}: {reason}" for problem in problems if (reason := oracle.misfit(problem))
    ]
    if not misfits:
        return
    shown = misfits[:MAX_SHOWN_PROBLEMS]
    more = len(misfits) - len(shown)
    separator = "\n  " if len(misfits) > 1 else " "
    raise OracleError(
        f"oracle {oracle.name!r} does not fit {len(misfits)} of {len(problems)} problems:{separator}"
        + "\n  ".join([*shown, f"and {more} more"] if more else shown)
    )


def oracle_settings(oracle: Oracle) -> dict[str, JsonValue]:
    """An oracle's name and options as the flat settings of a run: `oracle`, `oracle.NAME`."""
    return {"oracle": oracle.name, **{_PREFIX + name: value for name, value in oracle.options.items()}}


def oracle_of_settings(settings: Mapping[str, object]) -> Oracle:
    """The oracle that `oracle_settings` described; whoever makes it closes it.

    Raises:
        OracleError: it can't be made any more.
    """
    options = {
        name.removeprefix(_PREFIX): value for name, value in settings.items() if name.startswith(_PREFIX)
    }
    return make_oracle(str(settings.get("oracle")), options)


def judge_all(oracle: Oracle, items: Sequence[tuple[Problem, str, bool]]) -> list[Judgement]:
    """A judgement for each (problem, completion, truncated), in order.

    A truncated completion is censored without asking the oracle, and so is one on which the
    oracle fails; the explanation says why, and `Judgement.failed` tells the two apart. Neither ever
    counts as success or failure. How often the oracle failed is logged as a warning.
    """
    asked = [(problem, completion) for problem, completion, truncated in items if not truncated]
    answers = iter(oracle.judge_many(asked))
    judgements = [_CUT_OFF if truncated else next(answers) for _, _, truncated in items]
    failures = [judgement.explanation for judgement in judgements if judgement.failed]
    if failures:
        _logger.warning("%d of %d completions: %s", len(failures), len(items), failures[0])
    return judgements


_CUT_OFF: Final = Judgement(Verdict.CENSORED, None, "the completion was cut off before its end")


def _no_options() -> None:
    """What a `module:function` takes."""


def _fitting(problems: Sequence[Problem]) -> str:
    if (suggested := suggest_oracle(problems)) == "python":
        return suggested
    if suggested == "math" and all(gold_answer(problem.answer) for problem in problems):
        return suggested
    if all(ChoiceOracle().misfit(problem) is None for problem in problems):
        return "choice"
    if all(is_mathematics(gold_answer(problem.answer)) for problem in problems):
        return "math"
    long = [problem for problem in problems if not is_short_text(problem.answer)]
    if long:
        raise OracleError(
            f"no oracle fits: {len(long)} of {len(problems)} gold answers are neither mathematics nor "
            f"short, the first that of problem {long[0].id} ({long[0].answer!r:.80}). "
            f"The choices are {CHOICES}."
        )
    return "exact"
