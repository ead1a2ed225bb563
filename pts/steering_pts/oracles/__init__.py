"""Oracles: whether a completion is correct, incorrect, or not to be judged (censored)."""

from steering_pts.oracles.base import Judgement, Oracle, Verdict
from steering_pts.oracles.exact import ExactOracle
from steering_pts.oracles.math import MathOracle
from steering_pts.oracles.registry import ORACLES, choose_oracle, judge_all, make_oracle

__all__ = [
    "ORACLES",
    "ExactOracle",
    "Judgement",
    "MathOracle",
    "Oracle",
    "Verdict",
    "choose_oracle",
    "judge_all",
    "make_oracle",
]
