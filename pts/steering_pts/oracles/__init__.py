"""Oracles: whether a completion is correct, incorrect, or not to be judged (censored)."""

from steering_pts.oracles.base import AnswerWatcher, Judgement, Oracle, Verdict
from steering_pts.oracles.choice import ChoiceOracle
from steering_pts.oracles.exact import ExactOracle
from steering_pts.oracles.judge import JudgeOracle
from steering_pts.oracles.math import MathOracle
from steering_pts.oracles.regex import RegexOracle
from steering_pts.oracles.registry import (
    ORACLES,
    check_fit,
    choose_oracle,
    judge_all,
    make_oracle,
    oracle_of_settings,
    oracle_settings,
)

__all__ = [
    "ORACLES",
    "AnswerWatcher",
    "ChoiceOracle",
    "ExactOracle",
    "JudgeOracle",
    "Judgement",
    "MathOracle",
    "Oracle",
    "RegexOracle",
    "Verdict",
    "check_fit",
    "choose_oracle",
    "judge_all",
    "make_oracle",
    "oracle_of_settings",
    "oracle_settings",
]
