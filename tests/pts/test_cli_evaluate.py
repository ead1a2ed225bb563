from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steering_engine.loading import load_model
from steering_pts.cli.run import RunFolder
from steering_pts.data import load_problems
from steering_pts.evaluation.knowledge import decisions_of
from tests.support.evaluation import save_vectors
from tests.support.pts import ORACLE, SLOW_ORACLE, pts_process, run_pts, save_ending_model, write_problems
from tests.support.server import LiveServer
from tests.support.vectors import save_random_vector


@pytest.fixture(scope="module")
def vectors(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_vectors(tmp_path_factory.mktemp("vectors"), load_model(str(ending_folder)))


@pytest.fixture(scope="module")
def server(ending_folder: Path) -> Iterator[LiveServer]:
    with LiveServer(ending_folder) as live:
        yield live


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [
        {"question": f"Question {i}?", "answer": str(i), "form": "odd" if i % 2 else "even"}
        for i in range(100, 110)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_folder(original_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose vector has the contexts of its own decisions."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(original_run.path, folder)
    with original_run.read() as ledger:
        loaded = load_model(str(ledger.settings()["model"]))
    decisions = decisions_of(folder / "pivots.jsonl")
    contexts = sorted({decision.prefix_ids[-64:] for decision in decisions})
    (folder / "vectors").mkdir()
    save_random_vector(folder / "vectors", loaded, "pivot", [1], contexts=contexts, min_match=1)
    return folder


def arguments(*targets: Path, server: LiveServer, data: Path, out: Path, oracle: str = ORACLE) -> list[str]:
    return [
        "evaluate",
        *map(str, targets),
        *("--endpoint", server.address),
        *("--dataset", str(data)),
        *("--oracle", oracle),
        *("--max-tokens", "8"),
        *("--random-vectors", "2"),
        *("--out", str(out)),
        "--no-kl",
    ]


def told(path: Path) -> dict[str, Any]:
    """The report without what differs from time to time."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in report.items() if name not in ("created", "seconds")}


def test_a_run_is_evaluated_with_its_own_model_sampler_and_oracle(run_folder: Path, data: Path) -> None:
    ended = run_pts(
        "evaluate", str(run_folder), "--dataset", str(data), "--random-vectors", "2", "--by", "question_"
    )

    assert ended.error().startswith("no problem has the field 'question_'")

    ended = run_pts(
        *("evaluate", str(run_folder), "--dataset", str(data)),
        *("--random-vectors", "2", "--servers", "2", "--json"),
    )

    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report == json.loads((run_folder / "evaluation.json").read_text(encoding="utf-8"))
    assert report["problems"] == 10
    assert [one["name"] for one in report["vectors"]] == ["pivot"]
    assert "forced_alternative" in {arm["name"] for arm in report["arms"]}
    assert report["kl_unsteered_steps"]["mean"] >= 0
    assert max(arm["tokens_mean"] for arm in report["arms"]) <= 8
    for name in ("arms.svg", "arms.png", "completions.jsonl", "verdicts.jsonl"):
        assert (run_folder / "evaluation" / name).stat().st_size > 0
    assert (run_folder / "evaluation" / "arms.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_divergence_is_told_by_its_first_digits(
    server: LiveServer, vectors: list[Path], ending_folder: Path, data: Path, tmp_path: Path
) -> None:
    """It is often some millionths of a nat, of which four decimals leave nothing."""
    options = arguments(vectors[0], server=server, data=data, out=tmp_path / "out")
    options.remove("--no-kl")
    ended = run_pts(*options, "--model", str(ending_folder), "--arm", "strength_0", "--strength", "0.01")

    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))[
        "kl_unsteered_steps"
    ]
    assert 0 < found["mean"] < 1e-4
    assert f"mean {found['mean']:.2g}, 95 % quantile {found['p95']:.2g} nats" in " ".join(ended.out.split())


def test_people_read_tables(server: LiveServer, vectors: list[Path], data: Path, tmp_path: Path) -> None:
    ended = run_pts(
        *arguments(*vectors, server=server, data=data, out=tmp_path / "out"), "--each", "--by", "form"
    )

    assert ended.code == 0, ended.err
    assert "pivot (context), calm (always)" in ended.out
    rows = [line.split()[0] for line in ended.out.splitlines() if line.split()]
    assert {"unsteered", "steered", "steered:", "strength", "2", "odd", "even"} <= set(rows)
    groups = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["by_group"][
        "form"
    ]
    assert {value: group["n"] for value, group in groups.items()} == {"even": 5, "odd": 5}
    assert (tmp_path / "out" / "evaluation" / "by-form.png").stat().st_size > 0
    assert "strength 0: all 10 completions are the unsteered ones, token for token" in ended.out
    assert "calm has no recorded contexts and recommends no trigger, so it acts at every step" in ended.out
    assert (
        "forced_alternative: left out, since no run was given that knows which token is better" in ended.out
    )
    assert "steered: calm: p = " in ended.out


def test_a_killed_evaluation_goes_on(
    server: LiveServer, vectors: list[Path], data: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = run_pts(*arguments(vectors[0], server=server, data=data, out=whole))
    assert ended.code == 0, ended.err

    command = arguments(vectors[0], server=server, data=data, out=killed, oracle=SLOW_ORACLE)
    journal = killed / "evaluation" / "completions.jsonl"
    with pts_process(*command) as process:
        deadline = time.monotonic() + 60
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "evaluation.json").exists()
    kept = journal.read_bytes()
    journal.write_bytes(kept[:-7])  # as if it had been killed while it wrote

    again = run_pts(*arguments(vectors[0], server=server, data=data, out=killed))

    assert again.code == 0, again.err
    assert told(killed / "evaluation.json") == told(whole / "evaluation.json")
    before = journal.read_bytes()
    fresh = run_pts(*arguments(vectors[0], server=server, data=data, out=killed), "--fresh")
    assert fresh.code == 0, fresh.err
    assert told(killed / "evaluation.json") == told(whole / "evaluation.json")
    assert sorted(journal.read_bytes().split(b"\n")) == sorted(before.split(b"\n"))


def test_vector_files_that_cannot_be_evaluated_are_told_together(
    server: LiveServer, vectors: list[Path], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    targets = [
        tmp_path / "broken.safetensors",
        tmp_path / "empty",
        tmp_path / "absent.safetensors",
        vectors[1],
    ]

    ended = run_pts(*arguments(*targets, server=server, data=data, out=tmp_path), "--trigger", "probe")

    error = ended.error()
    assert f"{tmp_path}/empty: no vector files (*.safetensors) are in this folder" in error
    assert f"{tmp_path}/broken.safetensors: not a sound safetensors file" in error
    assert f"{tmp_path}/absent.safetensors can't be read: No such file or directory" in error
    assert (
        f"{vectors[1]}: it has no probe with a threshold at or before block 0, the first that it steers"
        in error
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--arm", "placebo"],
            "unknown arm 'placebo'; expected strength_0, flipped, random, shuffled_steps, ",
        ),
        (
            ["--trigger", "sometimes"],
            "unknown trigger 'sometimes'; expected context, probe, similarity, always",
        ),
        (["--neutral", "x"], "--neutral measures divergence, which --no-kl leaves out; give one of them"),
        (["--kl", "--neutral", "no/such/file"], "no/such/file can't be read: No such file or directory"),
        (["--strength", "nan"], "strength is nan; expected a number from -1000 to 1000"),
        (["--strength", "-inf"], "strength is -inf; expected a number from -1000 to 1000"),
        (["--strength", "1e30"], "strength is 1e+30; expected a number from -1000 to 1000"),
        (["--temperature", "0"], "temperature is 0.0; expected above 0"),
        (["--limit", "2", "--by", "kind"], "no problem has the field 'kind'; they have form"),
    ],
)
def test_what_cannot_be_asked_for(
    server: LiveServer, vectors: list[Path], data: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    ended = run_pts(*arguments(vectors[0], server=server, data=data, out=tmp_path), *more)

    assert ended.error().startswith(message)


@pytest.mark.parametrize("strength", [[], ["--strength", "nan"]])
def test_what_is_measured_last_is_checked_before_a_server_is_started(
    vectors: list[Path], ending_folder: Path, data: Path, tmp_path: Path, strength: list[str]
) -> None:
    empty, out = tmp_path / "empty.txt", tmp_path / "out"
    empty.touch()
    (out / "evaluation").mkdir(parents=True)
    (out / "evaluation" / "completions.jsonl").touch()
    # No server can be started with this type of numbers.
    options = [
        "--model",
        ending_folder,
        "--dataset",
        data,
        "--dtype",
        "no-such-type",
        "--out",
        out,
        "--fresh",
    ]

    ended = run_pts("evaluate", str(vectors[0]), *map(str, options), "--neutral", str(empty), *strength)

    if strength:
        assert ended.error().startswith("strength is nan")
        assert (out / "evaluation" / "completions.jsonl").exists(), "and before anything is forgotten"
    else:
        assert ended.error() == "the neutral text has 0 tokens; expected at least 2"


def test_what_is_missing_is_named(run_folder: Path, vectors: list[Path], data: Path, tmp_path: Path) -> None:
    def error(*more: object) -> str:
        return run_pts("evaluate", *map(str, more)).error()

    assert error(vectors[0]) == "name the --model to serve, the --endpoint of a running server, or a run"
    assert error(vectors[0], "--model", "x") == "name the --dataset whose problems are to be solved"
    assert "10 problems are those of the run" in error(
        run_folder, "--dataset", write_problems(tmp_path / "seen.jsonl", 10)
    )
    calibrated = tmp_path / "calibrated"
    shutil.copytree(run_folder, calibrated, ignore=shutil.ignore_patterns("*.lock"))
    chosen_on = [problem.id for problem in load_problems(data)][:3]
    (calibrated / "calibration.json").write_text(json.dumps({"problem_ids": chosen_on}), encoding="utf-8")
    assert "3 problems are those that its calibration chose and confirmed on" in error(
        calibrated, "--dataset", data
    )
    other = tmp_path / "other"
    shutil.copytree(run_folder, other, ignore=shutil.ignore_patterns("vectors", "*.lock"))
    assert error(other) == f"{other}: the run has no vectors; make some with `pts vectors`"
    assert error(run_folder, other) == f"{run_folder} and {other} are both runs; evaluate one at a time"


def test_a_model_here_that_is_not_the_served_one_is_refused_before_anything_is_measured(
    server: LiveServer, vectors: list[Path], data: Path, tmp_path: Path
) -> None:
    """It would tell the divergence of other numbers: models of one family share a tokenizer."""
    other = save_ending_model(tmp_path / "other", num_hidden_layers=5)
    out = tmp_path / "out"
    given = [one for one in arguments(vectors[0], server=server, data=data, out=out) if one != "--no-kl"]

    ended = run_pts(*given, "--model", str(other))

    assert ended.error() == (
        f"models/ending, which is served, is another model than {other}: its configuration differs"
    )
    assert not (out / "evaluation" / "completions.jsonl").read_bytes()


def test_vectors_for_another_model_are_refused_together(
    server: LiveServer, ending_folder: Path, data: Path, tmp_path: Path
) -> None:
    loaded = load_model(str(ending_folder))
    paths = [
        save_random_vector(tmp_path, loaded, name, [0], model_config_digest="0" * 64)
        for name in ("strange", "foreign")
    ]

    ended = run_pts(*arguments(*paths, server=server, data=data, out=tmp_path / "out"))

    fault = "made for the model 'tiny' with another configuration"
    assert ended.error() == f"{server.address} does not load foreign: {fault}; strange: {fault}"
