"""The demonstration with smaller numbers: from pivots to steered answers through a server, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steering_pts.calibration.options import CalibrationOptions
from steering_pts.demo.run import DemoOptions, run_demo
from steering_pts.vectors.methods import METHODS
from steering_pts.vectors.options import VectorOptions

# The fixture is the whole way; where other work shares the machine it takes longer than any one test may.
pytestmark = pytest.mark.timeout(1800)

TEST_PROBLEMS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    # A report of an earlier run, and something that is not the demonstration's.
    (folder / "report.json").write_text("{}", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steering_pts.demo.run._VALIDATION_PROBLEMS", 60)
        patch.setattr("steering_pts.demo.run._VECTORS", VectorOptions(methods=("optimised",), blocks=(1, 3)))
        options = CalibrationOptions((0.5, 1.0), ("context", "probe"), by="form")
        patch.setattr("steering_pts.demo.run._CALIBRATION", options)
        patch.setattr("steering_pts.demo.run._RANDOM_VECTORS", 3)
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
        *("forms", "permutation_p", "kl_unsteered_steps", "steered_steps_mean", "strength_0_identical"),
        *("probe", "calibration"),
    }
    for pivot in report["pivots"]:
        assert set(pivot) == {"kind", "position", "token", "delta", "ci", "p"}
    for vector in report["vectors"]:
        assert set(vector) == {"name", "method", "layer", "strength", "trigger"}
    for arm in ("unsteered", "steered", "every_step"):
        assert set(report[arm]) == {"n", "success"}
    assert set(report["random"]) >= {"n", "success_mean", "success_max"}
    assert set(report["probe"]) == {"auc", "precision", "recall"}
    assert set(report["calibration"]) == {"rollouts", "grid_rollouts", "chosen", "best_of_grid"}
    for form in report["forms"].values():
        assert set(form) == {"n", "unsteered", "steered"}


def test_what_was_run_is_told(report: dict[str, Any]) -> None:
    assert report["model"] == "demo"
    assert report["problems"] == 20
    assert report["completions"] == 20 * 8
    assert report["rollouts"] > 500
    assert report["tokens_generated"] > report["rollouts"]
    assert {report[arm]["n"] for arm in ("unsteered", "steered")} == {4 * TEST_PROBLEMS}
    assert {report[arm]["n"] for arm in ("every_step", "random")} == {TEST_PROBLEMS}
    assert sum(form["n"] for form in report["forms"].values()) == TEST_PROBLEMS
    assert report["calibration"]["rollouts"] < 0.35 * report["calibration"]["grid_rollouts"]
    assert 0 < report["calibration"]["chosen"] <= 1
    assert 0 < report["calibration"]["best_of_grid"] <= 1
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


def test_steering_touches_few_steps_and_no_others(report: dict[str, Any]) -> None:
    assert 0 < report["steered_steps_mean"] <= 3
    assert 0 <= report["kl_unsteered_steps"] <= 0.02
    assert report["strength_0_identical"] is True


def test_a_probe_tells_pivotal_steps_of_problems_never_seen(report: dict[str, Any]) -> None:
    # Twenty problems have few examples of some kinds; the demonstration itself has more.
    assert report["probe"]["precision"] > 0.9
    assert report["probe"]["recall"] > 0.6


def test_a_page_about_the_run_is_written(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f">{title}<" in page for title in ("Calibration", "Evaluation", "Vectors"))


def test_random_vectors_of_the_same_norm_at_the_same_positions_do_not(report: dict[str, Any]) -> None:
    random = report["random"]

    assert random["success_mean"] <= random["success_max"] < report["steered"]["success"]


def test_success_rates_are_shares_of_the_problems(report: dict[str, Any]) -> None:
    for arm in ("unsteered", "steered", "every_step"):
        solved = report[arm]["success"] * report[arm]["n"]
        assert 0 <= solved <= report[arm]["n"]
        assert solved == pytest.approx(round(solved))


def test_what_is_not_the_demonstrations_is_left_alone(folder: Path) -> None:
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
