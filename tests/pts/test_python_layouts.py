"""From a file in the layout of HumanEval or MBPP to verdicts, with nothing named on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.programs import PROMPT
from tests.support.pts import run_pts

HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "f",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def f(x):\n    return 2 * x",
    "test_list": ["assert f(two) == 4", "assert f(0) == 0"],
    "test_setup_code": "two = 2",
    "challenge_test_list": [],
}


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        (HUMAN_EVAL, "    return x + x\n", "    return x\n"),
        (MBPP, "```python\ndef f(x):\n    return x + x\n```", "```python\ndef f(x):\n    return 4\n```"),
    ],
    ids=["humaneval", "mbpp"],
)
def test_a_layout_with_tests_chooses_the_python_oracle_which_runs_them(
    tmp_path: Path, row: dict[str, object], right: str, wrong: str
) -> None:
    data, answers = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    rows = [
        {"task_id": row["task_id"], "completion": completion, "correct": completion == right}
        for completion in (right, wrong, "I do not know.")
    ]
    answers.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")

    ended = run_pts("grade", str(answers), "--dataset", str(data), "--json")

    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert report["oracle"]["oracle"] == "python"
    assert report["verdicts"] == {"correct": 1, "incorrect": 2, "censored": 0}
    assert (report["oracle_failures"], report["accuracy"]["value"]) == (0, 1.0)
