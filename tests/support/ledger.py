"""Records of a small ledger, and what fills, reads and damages one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from steering_pts.data import Problem
from steering_pts.ledger import (
    JSON,
    AlternativeCount,
    Arm,
    CompletionRecord,
    ConfirmationRecord,
    Ledger,
    LedgerReader,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.oracles import Verdict

SETTINGS: dict[str, JSON] = {"tau": 0.2, "seed": 7, "model": "tiny", "blocks": [0, 2]}
PROBLEM = Problem("p1", "1 + 2 * 3?", "7", {"form": "sum-product"})
OTHER_PROBLEM = Problem("p0", "2 * 3?", "6", {})
COMPLETION = CompletionRecord(
    id="c1",
    problem_id="p1",
    index=0,
    seed=2**63 - 1,
    prompt_ids=(1, 2),
    ids=(5, 6, 2**31 - 1),
    verdict=Verdict.CORRECT,
    extracted="7",
    finish_reason="stop",
)
SCORE = ScoreRecord("c1", (0.1, 1.0, 1 / 3))
ROLLOUT = RolloutRecord(
    RolloutKey("c1", 1, "alternative", "explore", 0), 11, (9, 8), Verdict.INCORRECT, None, tokens=2
)
NOMINEE = NomineeRecord(
    completion_id="c1",
    position=1,
    sign=-1,
    posterior=0.75,
    effect=-0.3,
    explored=(1, 2, 3),
    on_path=20,
    alternative=30,
)
CONFIRMATION = ConfirmationRecord(
    completion_id="c1",
    position=1,
    x1=20,
    n1=24,
    censored1=3,
    x2=2,
    n2=23,
    censored2=1,
    leave=0.9,
    p_value=1e-4,
    delta=0.5,
    low=0.3,
    high=0.6,
)
PIVOT = PivotRecord(
    completion_id="c1",
    problem_id="p1",
    position=1,
    ids=(6,),
    probability=0.4,
    delta=0.5,
    low=0.3,
    high=0.6,
    p_value=1e-4,
    q_value=2e-4,
    chosen_ids=(6,),
    rejected_ids=(9, 8),
    alternatives=(AlternativeCount((9, 8), 1, 20), AlternativeCount((10,), 0, 0)),
)


def fill(ledger: Ledger) -> None:
    """Adds one record of each kind."""
    ledger.add_problems([PROBLEM, OTHER_PROBLEM])
    ledger.add_completions([COMPLETION])
    ledger.add_scores([SCORE])
    ledger.add_rollouts([ROLLOUT])
    ledger.add_nominees([NOMINEE])
    ledger.add_confirmations([CONFIRMATION])
    ledger.write_pivots([PIVOT])


def rollout(index: int, position: int = 1, arm: Arm = "alternative", stage: str = "explore") -> RolloutRecord:
    """A rollout like `ROLLOUT` of another key."""
    return replace(ROLLOUT, key=RolloutKey("c1", position, arm, stage, index))


def decode(ids: Sequence[int]) -> str:
    """What stands for a tokenizer: each id in angle brackets."""
    return "".join(f"<{token}>" for token in ids)


def contents(ledger: LedgerReader) -> tuple[object, ...]:
    """All that a ledger holds."""
    return (
        ledger.problems(),
        ledger.completions(),
        ledger.scores(),
        ledger.rollouts_for("c1"),
        ledger.nominees(),
        ledger.confirmations(),
        ledger.pivots(),
    )


def changed(path: Path, *changes: str) -> None:
    """Changes what must not be changed, by SQL on the file itself."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for change in changes:
            connection.execute(change)
