"""The project's own files: what an installation on a fresh machine stands on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_constraint_is_one_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", line)] == []


def test_every_direct_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for group in project["optional-dependencies"].values() for d in group),
    ]
    names = {re.match(r"[A-Za-z0-9_.-]+", one)[0].lower().replace("_", "-") for one in wanted}  # type: ignore[index]
    constrained = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert names - {project["name"]} <= constrained


def test_examples_in_python_name_vectors_that_the_readme_s_commands_make() -> None:
    readme = (ROOT / "README.md").read_text()
    made = set(re.findall(r"'vectors/(pivot-\d+)'", readme))
    named = {
        name
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for name in re.findall(r"\bpivot-\d+\b", block)
    }
    assert made
    assert named <= made
