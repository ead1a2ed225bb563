"""The demonstration with smaller numbers: from pivots to steered answers through a server, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steering_pts.demo.run import DemoOptions, run_demo
from steering_pts.vectors.methods import METHODS

TEST_PROBLEMS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    # A report of an earlier run, and something that is not the demonstration's.
    (folder / "report.json").write_text("{}", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steering_pts.demo.run._VALIDATION_PROBLEMS", 100)
        patch.setattr("steering_pts.vectors.selection._FIRST_ROUND", 24)
        run_demo(DemoOptions(folder, problems=20, test_problems=TEST_PROBLEMS, seed=0))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def test_the_report_has_the_keys_that_tools_read(report: dict[str, Any]) -> None:
    assert set(report) == {
        *("model", "problems", "completions", "rollouts", "tokens_generated", "pivots", "vectors"),
        *("unsteered", "steered", "every_step", "random", "lift", "lift_ci95", "seconds"),
    }
    for pivot in report["pivots"]:
        assert set(pivot) == {"kind", "position", "token", "delta", "ci", "p"}
    for vector in report["vectors"]:
        assert set(vector) == {"name", "method", "layer", "strength"}
    for arm in ("unsteered", "steered", "every_step"):
        assert set(report[arm]) == {"n", "success"}
    assert set(report["random"]) >= {"n", "success_mean", "success_max"}


def test_what_was_run_is_told(report: dict[str, Any]) -> None:
    assert report["model"] == "demo"
    assert report["problems"] == 20
    assert report["completions"] == 20 * 8
    assert report["rollouts"] > 500
    assert report["tokens_generated"] > report["rollouts"]
    assert {report[arm]["n"] for arm in ("unsteered", "steered", "every_step", "random")} == {TEST_PROBLEMS}
    assert report["seconds"] > 0


def test_pivots_are_planted_decisions_with_effects_beyond_the_bound(report: dict[str, Any]) -> None:
    pivots = report["pivots"]

    assert len(pivots) >= 8
    planted = [pivot for pivot in pivots if pivot["kind"] in {"strategy", "correction", "operand", "slip"}]
    assert len(planted) >= 0.9 * len(pivots)
    for pivot in pivots:
        low, high = pivot["ci"]
        assert low <= pivot["delta"] <= high
        assert abs(pivot["delta"]) > 0.1
        assert 0 <= pivot["p"] <= 0.1
        assert isinstance(pivot["position"], int)
        assert isinstance(pivot["token"], str)


def test_vectors_are_named_after_the_decisions_that_they_are_for(
    report: dict[str, Any], folder: Path
) -> None:
    for vector in report["vectors"]:
        assert vector["name"].split("-")[0] in {"strategy", "correction", "operand", "slip", "other"}
        assert vector["method"] in METHODS
        assert 0 <= vector["layer"] < 4
        assert vector["strength"] > 0
        assert (folder / "vectors" / f"{vector['name']}.safetensors").is_file()
    assert report["vectors"]


def test_steering_at_pivots_helps_on_problems_that_nothing_was_made_from(report: dict[str, Any]) -> None:
    low, high = report["lift_ci95"]

    assert 0 < low <= report["lift"] <= high
    assert report["lift"] == pytest.approx(report["steered"]["success"] - report["unsteered"]["success"])


def test_random_vectors_of_the_same_norm_at_the_same_positions_do_not(report: dict[str, Any]) -> None:
    random = report["random"]

    assert random["success_mean"] <= random["success_max"] < report["steered"]["success"]


def test_success_rates_are_shares_of_the_problems(report: dict[str, Any]) -> None:
    for arm in ("unsteered", "steered", "every_step"):
        solved = report[arm]["success"] * TEST_PROBLEMS
        assert 0 <= solved <= TEST_PROBLEMS
        assert solved == pytest.approx(round(solved))


def test_what_is_not_the_demonstrations_is_left_alone(folder: Path) -> None:
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
