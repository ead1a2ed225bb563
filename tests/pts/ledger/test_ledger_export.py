"""The summary of a ledger, and the pivots written from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
from steering_pts.oracles import Verdict
from tests.support.ledger import COMPLETION, PIVOT, PROBLEM, SETTINGS, decode, rollout


def test_the_summary_counts_everything(filled: Ledger) -> None:
    filled.add_rollouts([replace(rollout(1, stage="confirm"), verdict=Verdict.CENSORED, tokens=40)])

    summary = filled.summary()

    assert (summary.problems, summary.scored, summary.nominees) == (2, 1, 1)
    assert (summary.confirmations, summary.pivots) == (1, 1)
    assert summary.completions == {Verdict.CORRECT: 1, Verdict.INCORRECT: 0, Verdict.CENSORED: 0}
    assert summary.rollouts == {Verdict.CORRECT: 0, Verdict.INCORRECT: 1, Verdict.CENSORED: 1}
    assert summary.stages == {"confirm": 1, "explore": 1}
    assert (summary.completion_tokens, summary.rollout_tokens) == (3, 42)


def test_the_summary_of_a_new_ledger_is_all_zero(ledger: Ledger) -> None:
    summary = ledger.summary()

    assert (summary.problems, summary.completion_tokens, summary.rollout_tokens) == (0, 0, 0)
    assert summary.completions == dict.fromkeys(Verdict, 0)


def test_an_exported_pivot_says_all_that_is_known_of_it(filled: Ledger, tmp_path: Path) -> None:
    filled.export_pivots_jsonl(tmp_path / "pivots.jsonl", decode)

    (line,) = (tmp_path / "pivots.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "schema": "steering.pivot/1",
        "problem_id": "p1",
        "completion_id": "c1",
        "question": "1 + 2 * 3?",
        "answer": "7",
        "prompt_ids": [1, 2],
        "prefix_ids": [5],
        "prefix": "<5>",
        "position": 1,
        "ids": [6],
        "token_id": 6,
        "token": "<6>",
        "probability": 0.4,
        "delta": 0.5,
        "low": 0.3,
        "high": 0.6,
        "p_value": 1e-4,
        "q_value": 2e-4,
        "confirmation": {
            "leave_probability": 0.9,
            "on_path_successes": 20,
            "on_path_rollouts": 24,
            "on_path_censored": 3,
            "alternative_successes": 2,
            "alternative_rollouts": 23,
            "alternative_censored": 1,
        },
        "chosen_id": 6,
        "chosen_ids": [6],
        "chosen": "<6>",
        "rejected_id": 9,
        "rejected_ids": [9, 8],
        "rejected": "<9><8>",
        "alternatives": [
            {
                "ids": [9, 8],
                "token_id": 9,
                "token": "<9><8>",
                "successes": 1,
                "failures": 20,
                "success_rate": 1 / 21,
            },
            {
                "ids": [10],
                "token_id": 10,
                "token": "<10>",
                "successes": 0,
                "failures": 0,
                "success_rate": None,
            },
        ],
    }


def test_the_order_of_work_does_not_change_an_exported_byte(tmp_path: Path) -> None:
    completions = [replace(COMPLETION, id=f"c{index}", index=index) for index in range(12)]
    pivots = [replace(PIVOT, completion_id=completion.id) for completion in completions]
    exports = []
    for name, step in (("one", 1), ("other", -1)):
        with Ledger.open(tmp_path / name, SETTINGS) as ledger:
            ledger.add_problems([PROBLEM])
            ledger.add_completions(completions[::step])
            ledger.write_pivots(pivots[::step])
            ledger.export_pivots_jsonl(tmp_path / "pivots.jsonl", decode)
        exports.append((tmp_path / "pivots.jsonl").read_bytes())

    assert exports[0] == exports[1]
    lines = exports[0].splitlines()
    assert [json.loads(line)["completion_id"] for line in lines] == [f"c{index}" for index in range(12)]


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(filled: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "pivots.jsonl").write_text("old")

    def failing(ids: Sequence[int]) -> str:
        raise KeyError(ids[0])

    with pytest.raises(KeyError):
        filled.export_pivots_jsonl(folder / "pivots.jsonl", failing)

    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("pivots.jsonl", "old")]


def test_an_export_to_nowhere_is_a_clear_error(filled: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"pivots\.jsonl can't be written: No such file or directory"):
        filled.export_pivots_jsonl(tmp_path / "nowhere" / "pivots.jsonl", decode)


def test_a_verdict_that_the_oracle_failed_to_give_is_told_from_one_that_it_could_not(filled: Ledger) -> None:
    filled.add_rollouts(
        [
            replace(rollout(1), verdict=Verdict.CENSORED, failed=True),
            replace(rollout(2), verdict=Verdict.CENSORED),
        ]
    )
    filled.add_completions([replace(COMPLETION, id="c2", index=1, verdict=Verdict.CENSORED, failed=True)])

    assert [record.failed for record in filled.rollouts_for("c1")] == [False, True, False]
    assert [record.failed for record in filled.completions()] == [False, True]
    assert filled.summary().oracle_failures == 2


def test_ten_thousand_rollouts_are_added_and_found(filled: Ledger) -> None:
    records = [replace(rollout(index), ids=tuple(range(60))) for index in range(1, 10_001)]
    for start in range(0, len(records), 100):
        filled.add_rollouts(records[start : start + 100])

    assert list(filled.find_rollouts(record.key for record in records).values()) == records
