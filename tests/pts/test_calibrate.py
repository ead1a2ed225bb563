"""`pts calibrate` from candidates to vector files: what is chosen, kept, written, and continued after a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import load_vector, save_vector
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import DataOptions, load_problems
from steering_pts.progress import RunProgress
from steering_pts.settings import SearchSettings
from tests.support.calibration import RUN_DIGEST, helpful_vector, write_candidates
from tests.support.pts import ORACLE, SAMPLER, Ended, run_pts, save_ending_model, write_problems
from tests.support.vectors import save_random_vector

VALIDATION, TEST = 40, 20


@pytest.fixture(scope="session")
def sharp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights so large that steering at its last block decides a token."""
    return save_ending_model(tmp_path_factory.mktemp("models") / "sharp", initializer_range=0.25)


@pytest.fixture(scope="session")
def sharp_run(sharp_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on that model; calibration needs its settings and problems alone."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "sharp")
    problems = load_problems(write_problems(folder.path.with_name("problems.jsonl"), 12))
    search = SearchSettings(base_rollouts=2, budget=24)
    with oracle_for(ORACLE, problems) as oracle:
        discover_into(
            folder,
            ModelChoice(str(sharp_folder)),
            problems,
            oracle,
            SAMPLER,
            search,
            0,
            RunProgress(quiet=True),
        )
    return folder


@pytest.fixture(scope="session")
def loaded(sharp_folder: Path) -> LoadedModel:
    return load_model(str(sharp_folder))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of two forms; none is one of `sharp_run`."""
    folder = tmp_path_factory.mktemp("problems")
    for name, first, count in (("validation", 100, VALIDATION), ("test", 200, TEST)):
        path = write_problems(folder / f"{name}.jsonl", count, first)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "form": "even" if i % 2 else "odd"}) for i, row in enumerate(rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def candidates(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_candidates(tmp_path_factory.mktemp("candidates"), loaded)


def arguments(run: Path, data: Path, *more: str) -> list[str]:
    return [
        "calibrate",
        str(run),
        *("--validation", str(data / "validation.jsonl")),
        *("--test", str(data / "test.jsonl")),
        *("--strength", "1", "--strength", "3"),
        *("--samples", "2"),
        *("--share", "0.5"),
        *("--by", "form"),
        "--json",
        *more,
    ]


@pytest.fixture(scope="session")
def calibrated(
    sharp_run: RunFolder, candidates: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run with calibrated vectors, and what the command said."""
    run = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(sharp_run.path, run)
    shutil.copytree(candidates, run / "candidates")
    ended = run_pts(*arguments(run, data))
    assert ended.code == 0, ended.err
    return run, json.loads(ended.out)


def test_the_setting_that_helps_is_found_and_its_lift_is_certain(
    calibrated: tuple[Path, dict[str, Any]],
) -> None:
    _, result = calibrated
    group = result["groups"][0]

    assert (group["name"], group["events"]) == ("ascii", 7)
    chosen = group["chosen"]
    assert (chosen["method"], chosen["block"], chosen["kept"]) == ("helpful", 2, True)
    assert chosen["effect"]["low95"] > 0
    assert chosen["effect"]["problems"] == VALIDATION // 2
    assert chosen["effect"]["kl"] <= 0.02
    assert set(chosen["effect"]["by"]) == {"even", "odd"}


def test_what_does_not_help_gets_no_file_and_a_sentence(calibrated: tuple[Path, dict[str, Any]]) -> None:
    run, result = calibrated

    assert result["groups"][1]["reason"].startswith("no certain lift on 20 validation problems: best ")
    assert [path.name for path in (run / "vectors").iterdir()] == ["ascii.safetensors"]
    assert result["files"] == {"ascii": str(run / "vectors" / "ascii.safetensors")}


def test_the_file_holds_the_setting_so_that_strength_1_is_the_calibrated_one(
    calibrated: tuple[Path, dict[str, Any]], loaded: LoadedModel
) -> None:
    run, result = calibrated
    chosen = result["groups"][0]["chosen"]

    vector = load_vector(run / "vectors" / "ascii.safetensors")

    source = helpful_vector(loaded, "ascii-helpful")
    metadata = vector.metadata
    assert metadata.name == "ascii"
    assert list(vector.directions) == [2]
    assert torch.equal(vector.directions[2], source.directions[2])
    assert metadata.calibrated_strength == {2: chosen["residual_strength"]}
    assert chosen["residual_strength"] == chosen["strength"] * source.metadata.calibrated_strength[2]
    assert vector.contexts == source.contexts
    assert metadata.recommended_trigger is not None
    assert metadata.recommended_trigger.kind == chosen["trigger"]
    lift = metadata.held_out_lift
    assert lift is not None
    assert (lift.lift, lift.low95, lift.split) == (
        chosen["effect"]["lift"],
        chosen["effect"]["low95"],
        "validation",
    )


def test_the_test_split_is_measured_once_with_what_is_kept(
    calibrated: tuple[Path, dict[str, Any]], data: Path
) -> None:
    run, result = calibrated
    test = result["test"]

    assert (test["split"], test["problems"], test["samples"]) == ("test", TEST, 2)
    assert result["groups"][0]["test"] == test
    assert result["groups"][1]["test"] is None
    of_test = {problem.id for problem in load_problems(data / "test.jsonl")}
    lines = [json.loads(line) for line in (run / "calibration.jsonl").read_text().splitlines()[1:]]
    tested = [line["arm"] for line in lines if {problem for problem, _ in line["draws"]} & of_test]
    assert len(tested) == 2
    assert tested[0] == ""
    assert "/2 x" in tested[1]


def test_rollouts_are_counted_against_the_full_grid(
    calibrated: tuple[Path, dict[str, Any]], data: Path
) -> None:
    assert calibrated[1]["problem_ids"] == sorted(p.id for p in load_problems(data / "validation.jsonl"))
    for group in calibrated[1]["groups"]:
        assert group["budget"] == group["grid_rollouts"] // 2
        assert group["grid_rollouts"] == (len(group["settings"]) + 1) * VALIDATION
        assert 0 < group["rollouts"] <= 0.5 * group["grid_rollouts"] or group["rounds"][0]["draws"] <= 4
        assert all(one["problems"] <= group["rounds"][-1]["draws"] for one in group["settings"])


def test_the_result_is_on_the_disk_as_it_was_printed(calibrated: tuple[Path, dict[str, Any]]) -> None:
    run, result = calibrated

    found = json.loads((run / "calibration.json").read_text(encoding="utf-8"))

    assert found["schema"] == "steering.calibration/1"
    assert {**found, "files": result["files"]} == result


def files_of(run: Path) -> dict[str, bytes]:
    paths = [run / "calibration.json", run / "calibration.jsonl", *sorted((run / "vectors").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("part", [1.0, 0.7])
def test_the_same_command_goes_on_to_the_same_files(
    calibrated: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, part: float
) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated[0], run)
    expected = files_of(run)
    (run / "calibration.json").unlink()
    shutil.rmtree(run / "vectors")
    log = run / "calibration.jsonl"
    os.truncate(log, int(part * log.stat().st_size))

    assert run_pts(*arguments(run, data)).code == 0

    assert files_of(run) == expected


def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_files(
    calibrated: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated[0], run)
    expected = files_of(run)
    log = run / "calibration.jsonl"
    for path in (run / "calibration.json", log):
        path.unlink()
    shutil.rmtree(run / "vectors")
    program = "import sys; from steering_pts.cli import main; sys.argv[0] = 'pts'; main()"
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments(run, data)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
        cwd=root,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.02)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, errors
    assert not (run / "calibration.json").exists()

    assert run_pts(*arguments(run, data)).code == 0

    assert files_of(run) == expected


def test_files_of_the_same_run_that_are_not_made_again_go(
    calibrated: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated[0], run)
    save_random_vector(run / "vectors", loaded, "foreign", [0])
    save_random_vector(run / "vectors", loaded, "older", [0], source_run_digest=RUN_DIGEST)

    assert run_pts(*arguments(run, data)).code == 0

    assert {path.stem for path in (run / "vectors").iterdir()} == {"ascii", "foreign"}


def test_the_full_grid_is_measured_when_asked_for_and_changes_nothing_that_is_chosen(
    calibrated: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", calibrated[1]
    shutil.copytree(calibrated[0], run)

    ended = run_pts(*arguments(run, data, "--full-grid"))

    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    grid = result.pop("grid")
    assert (before["grid"], result["groups"]) == (None, before["groups"])
    assert result["generated"] > before["generated"]
    chosen, best = grid["groups"][0], grid["groups"][0]["best"]
    assert chosen["chosen"] == before["groups"][0]["chosen"]["effect"]["steered"] == grid["chosen"]
    assert (best["method"], best["block"]) == ("helpful", 2)
    assert chosen["best_of_grid"] == grid["best_of_grid"] >= chosen["unsteered"]
    log = [json.loads(line) for line in (run / "calibration.jsonl").read_text().splitlines()[1:]]
    measured: dict[str, set[str]] = {}
    for line in log:
        measured.setdefault(line["arm"], set()).update(problem for problem, _ in line["draws"])
    loud = [key for key in measured if "always" in key and "+" not in key]
    assert len(loud) == sum(one["trigger"] == "always" for g in result["groups"] for one in g["settings"])
    assert all(len(measured[key]) >= VALIDATION // 2 for key in loud)


# --- vectors from elsewhere -------------------------------------------------------------------------------------------


def foreign(folder: Path, out: Path, model: Path, data: Path, *more: str) -> Ended:
    return run_pts(
        "calibrate",
        str(out),
        *("--vectors", str(folder), "--model", str(model), "--oracle", ORACLE, "--max-tokens", "8"),
        *("--validation", str(data / "validation.jsonl"), "--samples", "2", "--strength", "1"),
        *more,
    )


def test_vectors_from_elsewhere_need_no_run(
    loaded: LoadedModel, sharp_folder: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    save_vector(folder / "mine.safetensors", helpful_vector(loaded, "original-name"))

    ended = foreign(folder, tmp_path / "out", sharp_folder, data)

    assert ended.code == 0, ended.err
    assert "mine" in ended.out
    assert "helpful" in ended.out
    vector = load_vector(tmp_path / "out" / "vectors" / "mine.safetensors")
    assert vector.metadata.name == "mine"
    assert vector.metadata.recommended_trigger is not None


def test_what_is_missing_or_wrong_is_said_in_one_line(
    loaded: LoadedModel, sharp_folder: Path, sharp_run: RunFolder, data: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "elsewhere", tmp_path / "out"
    save_random_vector(folder, loaded, "mine", [0])
    validation = str(data / "validation.jsonl")

    def error(*arguments: str) -> str:
        return run_pts("calibrate", *arguments).error()

    assert error(str(out), "--validation", validation) == (
        f"{out}: no run here; make one with `pts discover`, or name --model for vectors from elsewhere"
    )
    assert "no such folder of vector files; `pts vectors RUN` makes RUN/candidates" in error(
        str(sharp_run.path), "--validation", validation
    )
    assert error(str(sharp_run.path), "--validation", validation, "--seed", "1", "--raw").endswith(
        "the run decides --raw, --seed; leave them out"
    )
    own = str(sharp_run.path.with_name("problems.jsonl"))
    assert "12 problems are those of the run" in error(str(sharp_run.path), "--validation", own)
    assert "40 problems are those of" in error(
        str(out), "--model", str(sharp_folder), "--validation", validation, "--test", validation
    )
    assert "there is 1 " not in error(
        str(out), "--validation", validation, "--share", "0", "--kl-budget", "-1"
    )
    both = error(str(out), "--validation", validation, "--share", "0", "--kl-budget", "-1")
    assert both == "the KL budget is -1.0; expected above 0; the share is 0.0; expected above 0, at most 1"
    first = load_problems(data / "validation.jsonl", DataOptions(limit=200, shuffle_seed=0))[0]
    assert foreign(folder, out, sharp_folder, data, "--by", "colour").error() == (
        f"calibration: 40 of 40 problems have no field 'colour', the first {first.id}"
    )
    assert (
        "the calibrated vectors are written there"
        in foreign(
            folder, folder.parent, sharp_folder, data, "--vectors", str(folder.parent / "vectors")
        ).error()
    )
    assert not out.exists()
