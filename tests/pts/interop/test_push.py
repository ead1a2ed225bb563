"""`pts push`: a folder with its card, and its upload to a server that takes commits as the Hub does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import HeldOutLift
from steering_pts.cli.run import RunFolder
from steering_pts.interop.control_vector import read_control_vector
from steering_pts.interop.hub.card import _cell
from steering_pts.interop.hub.replacing import MANIFEST
from tests.support.hub_server import FakeHub, fake_hub
from tests.support.pts import Ended, run_pts
from tests.support.vectors import save_random_vector

LIFT = HeldOutLift(split="test", problems=200, unsteered=0.5, steered=0.75, lift=0.25, low95=0.2, high95=0.3)


def push(run: RunFolder, out: Path, *options: str) -> Ended:
    return run_pts("push", str(run.path), "--repo", "me/pivots", "--out", str(out), *options)


@pytest.mark.parametrize("what", ["codelion-pts", "codelion-dpo", "trl-dpo"])
def test_a_dry_run_writes_the_data_set_and_its_card(
    finished_run: RunFolder, tmp_path: Path, what: str
) -> None:
    ended = push(finished_run, tmp_path / "out", "--what", what, "--dry-run")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{tmp_path / 'out'}\ndry run: nothing was uploaded\n"
    rows = (tmp_path / "out" / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    exported = run_pts("export", str(finished_run.path), "--to", what)
    with finished_run.read() as ledger:
        here = str(ledger.settings()["model"])
    assert rows == exported.out.replace(here, Path(here).name).splitlines()
    card = DatasetCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert card.data.license == "apache-2.0"
    for said in (
        f"{len(rows)} rows",
        "| problems | 12 |",
        "in expectation at most a share of 0.1 has an effect below 0.1",
        "search.confirm_most",
    ):
        assert said.replace("_", "\\_") in card.text
    with finished_run.read() as ledger:
        largest = max(ledger.pivots(), key=lambda pivot: abs(pivot.delta))
    assert f"| {largest.delta:+.2f} | {largest.low:+.2f} to {largest.high:+.2f} |" in card.text
    assert str(finished_run.path.parent) not in card.text, "nobody else knows the folders of this machine"


def test_vectors_are_pushed_with_what_they_were_measured_to_do(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path
) -> None:
    path = save_random_vector(
        tmp_path / "v", model.loaded, "calm", [1], contexts=[(5, 6)], held_out_lift=LIFT
    )

    ended = push(finished_run, tmp_path / "out", "--vectors", str(tmp_path / "v"), "--dry-run")

    assert ended.code == 0, ended.err
    assert load_vector(tmp_path / "out" / path.name).sha256 == load_vector(path).sha256
    card = ModelCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert (
        "| `calm.safetensors` | random | 1 | 5 | 0 | +0.250 (+0.200 to +0.300) | 200 problems (test) |"
        in card.text
    )
    assert "no place for *when*" not in card.text


def test_what_is_pushed_does_not_tell_the_folders_of_this_machine(
    finished_run: RunFolder, ending_folder: Path, model: SteeredModel, tmp_path: Path
) -> None:
    made = save_random_vector(
        tmp_path / "v",
        model.loaded,
        "calm",
        [1],
        model_id=str(ending_folder),
        discovery_settings={"model": str(ending_folder), "seed": 1},
    )

    for what in ("vectors", "codelion-pts"):
        ended = push(
            finished_run, tmp_path / what, "--what", what, "--vectors", str(made.parent), "--dry-run"
        )
        assert ended.code == 0, ended.err

    pushed = load_vector(tmp_path / "vectors" / made.name)
    assert pushed.metadata.model_id == ending_folder.name
    assert pushed.metadata.discovery_settings == {"model": ending_folder.name, "seed": 1}
    assert torch.equal(pushed.directions[1], load_vector(made).directions[1])
    files = [path for path in tmp_path.glob("*/**/*") if path.is_file() and path != made]
    assert not [path for path in files if str(ending_folder).encode() in path.read_bytes()]


def test_control_vectors_are_pushed_with_a_warning(
    finished_run: RunFolder, ending_folder: Path, model: SteeredModel, tmp_path: Path
) -> None:
    save_random_vector(tmp_path / "v", model.loaded, "calm", [1], model_id=str(ending_folder))

    ended = push(
        finished_run, tmp_path / "out", "--what", "gguf", "--vectors", str(tmp_path / "v"), "--dry-run"
    )

    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MANIFEST, "README.md", "calm.gguf"]
    assert "This format has no place for *when* to act" in (tmp_path / "out" / "README.md").read_text("utf-8")


def uploaded(hub: FakeHub, folder: Path, kind: str) -> str:
    """What an upload says, in a process that knows this server as the Hub, whose library reads that when it starts."""
    script = (
        "from pathlib import Path\n"
        "from steering_pts.errors import InteropError\n"
        "from steering_pts.interop.hub.upload import PushFolder, upload\n"
        "try:\n"
        f"    print(upload(PushFolder(Path({str(folder)!r}), {kind!r}), 'me/pivots', private=True))\n"
        "except InteropError as error:\n"
        "    print(error)\n"
    )
    here = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**here, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_test"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_what_is_written_is_what_arrives(finished_run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    push(finished_run, out, "--what", "trl-dpo", "--dry-run")

    with fake_hub() as hub:
        said = uploaded(hub, out, "dataset")

    assert said == f"{hub.address}/datasets/me/pivots/commit/0"
    (created,) = hub.created
    assert (created["name"], created["organization"], created["type"]) == ("pivots", "me", "dataset")
    assert hub.tokens == {"Bearer hf_test"}
    assert hub.files == {
        f"datasets/me/pivots/{name}": (out / name).read_bytes() for name in ("README.md", "data/train.jsonl")
    }


def test_a_server_that_refuses_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("It.", encoding="utf-8")

    with fake_hub() as hub:
        hub.refuses = True
        said = uploaded(hub, tmp_path, "model")

    assert said.startswith("me/pivots: it can't be pushed: ")
    assert "403" in said
    assert "\n" not in said


def test_a_server_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("It.", encoding="utf-8")
    with fake_hub() as hub:
        pass

    said = uploaded(hub, tmp_path, "model")

    assert said.startswith("me/pivots: it can't be pushed: ")
    assert "\n" not in said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_is_written_anew(finished_run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert push(finished_run, out, "--what", "trl-dpo", "--dry-run").code == 0
    first = contents(out)

    assert push(finished_run, out, "--what", "codelion-pts", "--dry-run").code == 0

    assert contents(out).keys() == first.keys()
    assert contents(out)["data/train.jsonl"] != first["data/train.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


@pytest.mark.parametrize(
    ("name", "written_before"),
    [("README.md", False), ("data/train.jsonl", False), ("README.md", True), ("data/mine.txt", True)],
)
def test_a_folder_with_somebody_elses_files_is_left_as_it_is(
    finished_run: RunFolder, tmp_path: Path, name: str, written_before: bool
) -> None:
    out = tmp_path / "out"
    if written_before:
        assert push(finished_run, out, "--what", "trl-dpo", "--dry-run").code == 0
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine", encoding="utf-8")
    before = contents(out)

    ended = push(finished_run, out, "--what", "trl-dpo", "--dry-run")

    is_changed = written_before and name == "README.md"
    said = "was changed since `pts push` wrote it" if is_changed else "which `pts push` did not write"
    assert f"{name!r}" in ended.error()
    assert said in ended.error()
    assert contents(out) == before


@pytest.mark.parametrize(
    ("what", "place"), [("vectors", "v"), ("gguf", "v"), ("vectors", "."), ("vectors", "v/in")]
)
def test_vectors_are_never_written_over_by_their_own_export(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path, what: str, place: str
) -> None:
    save_random_vector(tmp_path / "v", model.loaded, "calm", [1])
    before = contents(tmp_path)
    options = ("--what", what, "--vectors", str(tmp_path / "v"), "--dry-run")

    ended = push(finished_run, tmp_path / place, *options)

    assert f"it overlaps {tmp_path / 'v'}, which is read" in ended.error()
    assert contents(tmp_path) == before


def test_an_export_that_fails_leaves_the_folder_as_it_was(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path
) -> None:
    save_random_vector(tmp_path / "v", model.loaded, "calm", [1], model_id="no model")
    out = tmp_path / "out"
    assert push(finished_run, out, "--vectors", str(tmp_path / "v"), "--dry-run").code == 0
    before = contents(tmp_path)

    ended = push(finished_run, out, "--what", "gguf", "--vectors", str(tmp_path / "v"), "--dry-run")

    assert "pass --model-hint" in ended.error()
    assert contents(tmp_path) == before

    options = ("--what", "gguf", "--model-hint", "qwen3", "--vectors", str(tmp_path / "v"), "--dry-run")
    ended = push(finished_run, tmp_path / "told", *options)

    assert ended.code == 0, ended.err
    assert read_control_vector(tmp_path / "told" / "calm.gguf").model_hint == "qwen3"


def test_one_vector_file_is_pushed_alone(
    finished_run: RunFolder, ending_folder: Path, model: SteeredModel, tmp_path: Path
) -> None:
    path = save_random_vector(tmp_path / "v", model.loaded, "calm", [1], model_id=str(ending_folder))

    ended = push(finished_run, tmp_path / "out", "--what", "gguf", "--vectors", str(path), "--dry-run")

    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out").keys() == {MANIFEST, "README.md", "calm.gguf"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repo", "pivots"], "a repository is named owner/name"),
        (["--repo", "me/pivots", "--what", "all"], "unknown export 'all'; expected vectors, gguf"),
        (["--repo", "me/pivots", "--vectors", "/nowhere"], "it can't be read: No such file"),
    ],
)
def test_what_can_not_be_pushed_is_said_in_one_line(
    finished_run: RunFolder, options: list[str], message: str
) -> None:
    assert message in run_pts("push", str(finished_run.path), "--dry-run", *options).error()

    assert not (finished_run.path / "push").exists(), "a folder that nothing came into is not left behind"


def test_texts_do_not_break_the_tables_of_a_card() -> None:
    assert _cell("a|b\n`c`") == "a\\|b \\`c\\`"
    assert _cell(" ") == "` `"
    assert len(_cell("x" * 500)) == 80
