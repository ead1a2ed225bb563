from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from steering_pts.cli.run import RunFolder
from steering_pts.ledger import Ledger
from tests.support.models import save_tiny_model
from tests.support.pts import (
    SLOW_ORACLE,
    Ended,
    discover_arguments,
    pts_process,
    run_pts,
    save_ending_model,
    wait_for_rollouts,
    write_problems,
)

Pts = Callable[..., Ended]


@pytest.fixture
def pts() -> Pts:
    """The command."""
    return run_pts


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_problems(tmp_path / "problems.jsonl", 3)


@pytest.fixture
def discover(pts: Pts, tmp_path: Path, ending_folder: Path, problems: Path) -> Pts:
    """`pts discover` with everything right, except for the arguments that are given."""

    def run(*more: str, model: Path = ending_folder, dataset: Path = problems) -> Ended:
        return pts(*discover_arguments(tmp_path / "run", model, dataset, *more))

    return run


@pytest.fixture
def run(original_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run of its own."""
    shutil.copytree(original_run.path, tmp_path / "finished")
    return RunFolder(tmp_path / "finished")


# --- where and how the work is done -----------------------------------------------------------------------------------


def test_batch_and_determinism_change_neither_the_pivots_nor_the_settings(
    discover: Pts, tmp_path: Path
) -> None:
    ended, pivots, settings = [], [], []
    for options in ((), ("--batch", "3", "--deterministic")):
        ended.append(discover(*options).code)
        folder = RunFolder(tmp_path / "run")
        pivots.append(folder.pivots.read_bytes())
        with folder.read() as ledger:
            settings.append(ledger.settings())
        folder.clear()
    assert ended == [0, 0]
    assert pivots[0] == pivots[1]
    assert settings[0] == settings[1]


def test_determinism_that_can_not_be_kept_is_refused_in_one_line(discover: Pts) -> None:
    error = discover("--deterministic", "--dtype", "bfloat16").error()
    assert error.endswith("can't be run deterministically: it runs in bfloat16; float32 is needed")


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "./nowhere", "./nowhere: no such folder"),
        ("--model", ".", ".: no model folder (it has no config.json)"),
        ("--dataset", "nowhere.jsonl", "nowhere.jsonl: there is no such file"),
        ("--dataset", "demo:nothing", "unknown split 'nothing'"),
        ("--question-field", "nothing", "no field is named 'nothing'; name the question field with"),
        ("--answer-field", "nothing", "no field is named 'nothing'; name the answer field with"),
        ("--oracle", "nothing", "unknown oracle 'nothing'; the choices are math"),
        ("--oracle", "nothing:f", "oracle 'nothing:f' can't be imported: ModuleNotFoundError"),
        ("--tau", "1.5", "tau is 1.5; expected between 0 and 1"),
        ("--tau", "nan", "tau is nan; expected between 0 and 1"),
        ("--delta0", "0.3", "delta0 is 0.3; expected at least 0 and below tau (0.2)"),
        ("--fdr", "0", "fdr is 0.0; expected between 0 and 1"),
        ("--budget", "0", "budget is 0; expected at least 1"),
        ("--confirm-least", "0", "confirm_least is 0; expected at least 1"),
        ("--confirm-most", "3", "confirm_most (3) is below confirm_least (12)"),
        ("--unit", "word", "unit is 'word'; expected token or sentence"),
        ("--base-rollouts", "0", "base_rollouts is 0; expected at least 1"),
        ("--completions-per-problem", "9", "completions_per_problem (9) exceeds base_rollouts (8)"),
        ("--temperature", "0", "temperature is 0.0; expected above 0, at most 100"),
        ("--top-p", "2", "top_p is 2.0; expected above 0, at most 1"),
        ("--min-p", "1.5", "min_p is 1.5; expected at least 0 (off), at most 1"),
        ("--top-k", "-1", "top_k is -1; expected 0 (all tokens) or more"),
        ("--max-tokens", "0", "max_tokens is 0; expected at least 1"),
        ("--device", "abacus", "unknown device 'abacus'; expected auto, cpu, cuda or cuda:N"),
        ("--dtype", "int3", "unknown dtype 'int3'; expected auto, float32, bfloat16, float16"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_leaves_nothing(
    discover: Pts, tmp_path: Path, option: str, value: str, message: str
) -> None:
    assert message in discover(option, value).error()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"question": "Q", "answer": "1"}\n{"question": \n',
            "line 2: not JSON (Expecting value, column 14)",
        ),
        ('{"question": "Q", "answer": "1"}\n["Q"]\n', "line 2: not a JSON object"),
        ('{"question": "Q", "answer": "1"}\n{"question": "R"}\n', "line 2: no field 'answer'"),
        ("", "it is empty; it must hold one JSON object on each line"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_leaves_nothing(
    discover: Pts, tmp_path: Path, content: str, message: str
) -> None:
    dataset = tmp_path / "bad.jsonl"
    dataset.write_text(content, encoding="utf-8")

    assert discover(dataset=dataset).error() == f"{dataset}: {message}"
    assert not (tmp_path / "run").exists()


def test_answers_that_no_oracle_fits_are_refused_with_the_choices(
    pts: Pts, tmp_path: Path, ending_folder: Path
) -> None:
    dataset = tmp_path / "essays.jsonl"
    dataset.write_text(json.dumps({"question": "Why?", "answer": "Because. " * 40}) + "\n", encoding="utf-8")

    ended = pts("discover", str(tmp_path / "run"), "--model", str(ending_folder), "--dataset", str(dataset))

    assert ended.error().startswith("no oracle fits: 1 of 1 gold answers are neither mathematics nor short")
    assert "any module:function" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_needs_plain_prompts(discover: Pts, tmp_path: Path) -> None:
    folder = save_ending_model(tmp_path / "model", chat=False)

    ended = discover(model=folder)

    assert ended.error() == f"{folder} has no chat template; pass --raw to give it the questions as they are"
    assert not (tmp_path / "run").exists()
    assert discover("--raw", model=folder).code == 0


def test_a_prompt_that_is_too_long_is_named(discover: Pts, tmp_path: Path) -> None:
    dataset = tmp_path / "long.jsonl"
    dataset.write_text(json.dumps({"question": "x" * 300, "answer": "1"}) + "\n", encoding="utf-8")

    assert "1 of 1 prompts leave no room for an answer" in discover(dataset=dataset).error()
    assert not (tmp_path / "run").exists()


def test_a_broken_model_is_one_clear_line(discover: Pts, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no tensors")

    assert discover(model=folder).error().startswith(f"{folder}: can't be loaded: ")
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_run_is_named(discover: Pts, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")

    assert "run can't be made: File exists" in discover().error()
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def test_a_file_in_the_place_of_the_ledger_is_named_and_kept(discover: Pts, tmp_path: Path) -> None:
    ledger = RunFolder(tmp_path / "run").ledger
    ledger.parent.mkdir()
    ledger.write_text("mine, and long enough to be a database" * 20, encoding="utf-8")

    assert f"{ledger}: file is not a database" == discover().error()
    assert ledger.read_text(encoding="utf-8").startswith("mine")


def test_another_setting_on_the_same_folder_is_refused(discover: Pts, tmp_path: Path) -> None:
    assert discover().code == 0
    before = RunFolder(tmp_path / "run").pivots.read_bytes()

    ended = discover("--seed", "7")

    assert "was begun with other settings: seed was 0 and is now 7. Use the same settings" in ended.error()
    assert RunFolder(tmp_path / "run").pivots.read_bytes() == before


@pytest.mark.parametrize("command", ["status", "show", "vectors"])
def test_a_folder_without_a_run_is_named(pts: Pts, tmp_path: Path, command: str) -> None:
    error = pts(command, str(tmp_path)).error()

    assert error == f"{tmp_path}: no run here (it has no ledger.sqlite); make one with `pts discover`"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["show", "vectors"])
def test_a_run_that_is_not_finished_is_named(pts: Pts, run: RunFolder, command: str) -> None:
    run.pivots.unlink()

    error = pts(command, str(run.path)).error()

    assert error == f"{run.path}: the run is not finished; the command that began it goes on"
    assert not run.vectors.exists()


def test_a_block_that_the_model_does_not_have_is_refused(pts: Pts, run: RunFolder) -> None:
    error = pts("vectors", str(run.path), "--block", "0", "--block", "3").error()

    assert error == "block 3 does not exist; the model has blocks 0 to 2"
    assert not run.vectors.exists()


def test_an_unknown_method_is_refused(pts: Pts, run: RunFolder) -> None:
    error = pts("vectors", str(run.path), "--method", "magic").error()

    assert error == ("unknown method 'magic'; expected paired_difference, context_difference, pca, optimised")


def test_other_wrong_options_of_vectors_are_refused(pts: Pts, run: RunFolder) -> None:
    grouped = pts("vectors", str(run.path), "--group-by", "colour").error()
    recorded = pts("vectors", str(run.path), "--record-dtype", "int8").error()
    remote = pts("vectors", str(run.path), "--remote").error()

    assert grouped == "can't group by 'colour'; expected clusters or tokens"
    assert recorded == "unknown dtype 'int8' for recording; expected float32, bfloat16, float16"
    assert remote.endswith("is a folder; recording on another machine needs a model by its id on the hub")
    assert not run.vectors.exists()


def test_problems_of_the_run_are_no_validation(pts: Pts, run: RunFolder, tmp_path: Path) -> None:
    validation = write_problems(tmp_path / "validation.jsonl", 5, first=10)  # the run has 0 to 11

    error = pts("vectors", str(run.path), "--validation", str(validation)).error()

    assert error == (
        f"data sets that overlap: {validation}: 2 problems are those of the run; use problems that it never saw"
    )
    assert not run.vectors.exists()


def test_a_few_validation_problems_are_too_few(pts: Pts, run: RunFolder, tmp_path: Path) -> None:
    validation = write_problems(tmp_path / "validation.jsonl", 3, first=50)

    error = pts("vectors", str(run.path), "--validation", str(validation)).error()

    assert error == (
        "calibration: there are 3 validation problems; at least 4 are needed, better 100 or more"
    )
    assert not run.vectors.exists()


def test_a_missing_validation_file_is_named(pts: Pts, run: RunFolder) -> None:
    error = pts("vectors", str(run.path), "--validation", "nowhere.jsonl").error()

    assert error == "nowhere.jsonl: there is no such file"


def test_a_model_that_has_gone_since_is_named(pts: Pts, run: RunFolder) -> None:
    with run.read() as ledger:
        settings = ledger.settings()
    moved = RunFolder(run.path / "moved")
    Ledger.open(moved.ledger, {**settings, "model": "./gone"}).close()
    moved.pivots.touch()

    assert pts("vectors", str(moved.path)).error().startswith("./gone: no such folder")


@pytest.mark.parametrize(
    "arguments", [["discover", "--bogus"], ["discover"], ["bogus"], ["discover", "r", "--limit", "0"]]
)
def test_a_wrong_command_line_is_told_by_usage(pts: Pts, arguments: list[str]) -> None:
    ended = pts(*arguments)

    assert ended.code == 2
    assert "Usage: pts" in ended.err
    assert "Traceback" not in ended.err


# --- output -----------------------------------------------------------------------------------------------------------


def test_discover_prints_one_json_object_and_nothing_else(discover: Pts, tmp_path: Path) -> None:
    ended = discover("--json")

    summary = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert summary["run"] == str(tmp_path / "run")
    assert summary["problems"] == 3
    assert sum(summary["completions"].values()) == 24
    assert summary["pivots"] == RunFolder(tmp_path / "run").pivots.read_bytes().count(b"\n")


def test_without_a_terminal_progress_is_one_line_for_each_phase(discover: Pts) -> None:
    lines = discover().err.splitlines()

    assert lines[0].startswith("sampling completions: 24 (")
    assert {line.split(":")[0] for line in lines} <= {"sampling completions", "exploring", "confirming"}
    assert all(line.endswith(" tokens)") for line in lines)


def test_a_finished_run_that_is_begun_again_has_nothing_to_tell_of_phases(discover: Pts) -> None:
    first = discover()

    again = discover()

    assert (again.code, again.out, again.err) == (0, first.out, "")


def test_status_tells_the_same_as_discover(pts: Pts, discover: Pts, tmp_path: Path) -> None:
    told = discover("--json").out

    assert pts("status", str(tmp_path / "run"), "--json").out == told


def test_status_is_a_table_for_people(pts: Pts, run: RunFolder) -> None:
    ended = pts("status", str(run.path))

    assert ended.code == 0
    for name in ("problems", "completions", "searched", "rollouts", "tokens generated", "nominees", "pivots"):
        assert name in ended.out


def test_show_prints_the_pivots_as_they_are_in_the_file(pts: Pts, run: RunFolder) -> None:
    lines = run.pivots.read_text(encoding="utf-8").splitlines()

    ended = pts("show", str(run.path), "--json", "--limit", "2")

    assert ended.out.splitlines() == lines[:2]


@pytest.mark.parametrize("options", [(), ("--full",), ("--json",)])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-20], "line {last} is not a whole steering.pivot/1 object"),
        (lambda content: b"[1]\n" + content, "line 1 is not a whole steering.pivot/1 object"),
        (lambda content: content.replace(b"question", b"question\xff", 1), "it is not UTF-8"),
    ],
)
def test_show_names_what_is_damaged_and_prints_nothing(
    pts: Pts, run: RunFolder, options: tuple[str, ...], damage: Callable[[bytes], bytes], said: str
) -> None:
    content = run.pivots.read_bytes()
    run.pivots.write_bytes(damage(content))

    error = pts("show", str(run.path), *options).error()

    said = said.format(last=content.count(b"\n"))
    assert error == f"{run.pivots} is damaged: {said}; the command that began the run writes it anew"


def test_a_text_with_an_odd_end_of_line_is_still_one_line(pts: Pts, run: RunFolder) -> None:
    content = run.pivots.read_text(encoding="utf-8").replace("Question", "Question\u2028\x85")
    run.pivots.write_text(content, encoding="utf-8")

    ended = pts("show", str(run.path), "--json", "--limit", "1000")

    assert (ended.code, ended.out) == (0, content)


def test_show_is_a_table_for_people_and_says_what_it_leaves_out(pts: Pts, run: RunFolder) -> None:
    pivots = [json.loads(line) for line in run.pivots.read_text(encoding="utf-8").splitlines()]

    ended = pts("show", str(run.path), "--limit", "1")

    assert ended.code == 0
    assert f"{len(pivots)} pivotal tokens" in ended.out
    assert pivots[0]["question"] in ended.out
    assert f"{pivots[0]['delta']:+.2f}" in ended.out
    assert f"and {len(pivots) - 1} more (--limit)" in ended.out


def test_vectors_prints_one_json_object_and_writes_what_it_says(pts: Pts, run: RunFolder) -> None:
    ended = pts("vectors", str(run.path), "--json", "--method", "paired_difference", "--method", "pca")

    report = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    (vector,), (group,) = report["vectors"], report["candidates"]
    assert (vector["name"], vector["block"]) == ("pivot-1", 1)
    assert Path(vector["path"]).is_file()
    assert (group["name"], group["events"]) == ("pivot-1", vector["events"])
    assert all(Path(path).is_file() for path in group["files"].values())
    assert set(group["strengths"]) == {"paired_difference", "pca"}
    assert set(group["strengths"]["pca"]) == {"0", "1", "2"}
    assert group["reliability"].keys() == group["strengths"].keys()
    assert report["left_out"] == []


def test_vectors_chosen_on_validation_problems_use_what_room_the_context_leaves(
    pts: Pts, run: RunFolder, tmp_path: Path
) -> None:
    validation = write_problems(tmp_path / "validation.jsonl", 4, first=50)

    ended = pts(
        "vectors", str(run.path), "--validation", str(validation), "--block", "1", "--method", "pca", "--json"
    )

    calibration = json.loads(ended.out)["calibration"]
    assert [group["name"] for group in calibration["groups"]] == ["pivot-1"]
    assert set(calibration["files"]) == {path.stem for path in run.vectors.glob("*")}
    assert json.loads((run.path / "calibration.json").read_bytes())["groups"] == calibration["groups"]


def test_vectors_is_a_table_for_people(pts: Pts, run: RunFolder) -> None:
    ended = pts("vectors", str(run.path), "--method", "paired_difference")

    assert "pivot-1" in ended.out
    assert "split-half reliability" in ended.out
    assert "not calibrated" in ended.out


def test_a_run_without_vectors_says_why(pts: Pts, run: RunFolder) -> None:
    ended = pts("vectors", str(run.path), "--min-events", "100")

    assert ended.code == 0
    assert "no vectors" in ended.out
    assert "decisions of kinds that were seen fewer than 100 times" in ended.out


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interruption:
    """A `pts discover` that was interrupted by Ctrl-C, and a second one that came while it ran."""

    run: RunFolder
    arguments: list[str]
    process: int
    first: Ended
    second: Ended


@pytest.fixture(scope="module")
def interruption(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Interruption:
    folder = tmp_path_factory.mktemp("interrupted")
    data = write_problems(folder / "problems.jsonl", 12)
    arguments = discover_arguments(folder / "run", ending_folder, data, "--oracle", SLOW_ORACLE)
    with pts_process(*arguments, oracle_seconds=0.02) as process:
        wait_for_rollouts(folder / "run", process)
        os.killpg(process.pid, signal.SIGSTOP)  # else it could be done before the second one has even started
        second = run_pts(*arguments)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        os.killpg(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        first = Ended(process.returncode, out, err)
    return Interruption(RunFolder(folder / "run"), arguments, process.pid, first, second)


def test_a_second_process_on_the_same_run_is_refused(interruption: Interruption) -> None:
    error = interruption.second.error()

    assert error == f"{interruption.run.ledger} is in use by process {interruption.process}"


def test_ctrl_c_ends_with_its_own_code_and_says_how_to_go_on(interruption: Interruption) -> None:
    assert interruption.first.code == 130
    assert interruption.first.out == ""
    assert "Traceback" not in interruption.first.err
    last = interruption.first.err.splitlines()[-1]
    assert last == "pts: interrupted; the same command goes on where this one stopped"
    assert not interruption.run.pivots.exists()


def test_an_ended_command_leaves_in_order(ending_folder: Path, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "problems.jsonl", 12)
    arguments = discover_arguments(tmp_path / "run", ending_folder, data, "--oracle", SLOW_ORACLE)
    with pts_process(*arguments, oracle_seconds=0.02) as process:
        wait_for_rollouts(tmp_path / "run", process)
        process.terminate()
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "pts: interrupted; the same command goes on where this one stopped"


def test_an_interrupted_command_goes_on_to_the_pivots_of_an_uninterrupted_one(
    interruption: Interruption, pts: Pts, tmp_path: Path
) -> None:
    command, _, *options = interruption.arguments
    shutil.copytree(interruption.run.path, tmp_path / "interrupted")

    assert pts(command, str(tmp_path / "interrupted"), *options).code == 0
    assert pts(command, str(tmp_path / "whole"), *options).code == 0

    pivots = RunFolder(tmp_path / "interrupted").pivots.read_bytes()
    assert pivots == RunFolder(tmp_path / "whole").pivots.read_bytes()
    assert pivots.count(b"\n") >= 3
