"""Ends a rollout as soon as no continuation can change its verdict, where the oracle can tell."""

from __future__ import annotations

from collections.abc import Callable

from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle


def until_for(oracle: Oracle, problem: Problem, given: str) -> Callable[[str], bool] | None:
    """A fresh watcher of one rollout, to be fed with the text that is generated; None where the oracle can't tell.

    Args:
        oracle: Judges the whole completion.
        problem: What it answers.
        given: Text of the completion before the rollout begins.
    """
    watcher = oracle.watcher(problem)
    if watcher is None:
        return None
    if given and watcher(given):  # the completion went on behind a closed answer: so may the rollout
        return None
    return watcher
