"""`make proto-breaking`: the protos against those of the last release, in a repository of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = Path("protos/steering/v1/model.proto")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with our protos, committed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for proto in [
        "buf.yaml",
        *(path.relative_to(ROOT / "protos") for path in ROOT.glob("protos/steering/v1/*.proto")),
    ]:
        target = tmp_path / "protos" / proto
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "protos" / proto, target)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=repository, check=True)


def compare(repository: Path) -> tuple[bool, str]:
    """Whether the protos pass, and what is said of them."""
    # The tools are those of this environment: there is nothing to set up.
    command = ["make", "--silent", "proto-breaking", "SETUP=", f"BIN={Path(sys.executable).parent}"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    return run.returncode == 0, run.stdout + run.stderr


def test_before_the_first_release_there_is_nothing_to_compare_with(repository: Path) -> None:
    git(repository, "tag", "no-release")
    passed, told = compare(repository)
    assert passed
    assert "no release tag" in told


def test_additions_are_compatible_and_everything_else_is_refused(repository: Path) -> None:
    git(repository, "tag", "v1.0.0")
    path = repository / PROTO
    released = path.read_text()

    path.write_text(f"{released}\nmessage Added {{\n  string name = 1;\n}}\n")
    passed, told = compare(repository)
    assert passed, told
    assert told == "proto-breaking: compatible with v1.0.0\n"

    assert "rpc GetModel" in released
    path.write_text(released.replace("rpc GetModel", "rpc FetchModel"))
    passed, told = compare(repository)
    assert not passed
    assert 'Previously present RPC "GetModel"' in told


def test_the_last_release_is_what_counts(repository: Path) -> None:
    git(repository, "tag", "v1.0.0")
    path = repository / PROTO
    released = path.read_text()
    path.write_text(f"{released}\nmessage Added {{\n  string name = 1;\n}}\n")
    git(repository, "commit", "--quiet", "--all", "--message", "added")
    git(repository, "tag", "v1.1.0")

    path.write_text(released)
    passed, told = compare(repository)
    assert not passed
    assert 'Previously present message "Added"' in told
