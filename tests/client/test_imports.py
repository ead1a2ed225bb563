"""The client is light: what it imports, shown in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "pydantic",
    "typer",
)


@pytest.mark.parametrize("package", ["steering_client", "steering_spec"])
def test_no_heavy_library_and_no_other_part_of_the_project_is_imported(package: str) -> None:
    others = ("steering_engine", "steering_server", "steering_pts")
    program = f"import sys, {package}; print(*sorted(set(sys.modules) & set({(*HEAVY, *others)!r})))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""


def test_everything_it_exports_exists_once() -> None:
    program = (
        "import steering_client as c\n"
        "assert len(set(c.__all__)) == len(c.__all__)\n"
        "assert all(hasattr(c, name) for name in c.__all__)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
