"""Which package may import which, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "steering_spec": ROOT / "protos/steering_spec",
    "steering_engine": ROOT / "server/steering_engine",
    "steering_server": ROOT / "server/steering_server",
    "steering_pts": ROOT / "pts/steering_pts",
    "steering_client": ROOT / "clients/python/steering_client",
}

MAY_IMPORT = {
    "steering_spec": {"steering"},
    "steering_engine": {"steering_spec"},
    "steering_server": {"steering", "steering_spec", "steering_engine"},
    "steering_client": {"steering", "steering_spec"},
    "steering_pts": {"steering_spec", "steering_engine", "steering_client"},
}
"""Packages of this project that each one may import; `steering` is the generated code."""

MAY_IMPORT_GENERATED_CODE = (
    "protos/steering_spec/convert/",
    "server/steering_server/rpc/",
    "clients/python/steering_client/generation.py",
    "clients/python/steering_client/transport.py",
)

CONTINUOUS_BATCHING = "transformers.generation.continuous_batching"


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, path


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_package_has_sources() -> None:
    assert {package for package, _ in sources()} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_before_it(package: str) -> None:
    ours = {"steering", *PACKAGES}
    for owner, path in sources():
        if owner == package:
            used = {name.partition(".")[0] for name in imports(path)} & ours
            assert used <= {package} | MAY_IMPORT[package], path


def test_generated_code_is_imported_only_where_messages_are_converted_or_sent() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for _, path in sources()
        if any(name == "steering" or name.startswith("steering.") for name in imports(path))
    }
    assert [user for user in users if not user.startswith(MAY_IMPORT_GENERATED_CODE)] == []


def test_one_package_alone_touches_the_librarys_continuous_batching() -> None:
    users = {
        path.parent.relative_to(ROOT).as_posix()
        for _, path in sources()
        if any(name.startswith(CONTINUOUS_BATCHING) for name in imports(path))
    }
    assert users == {"server/steering_engine/engine/library"}


@pytest.mark.parametrize("package", ["steering_spec", "steering_client"])
def test_the_clients_side_imports_no_torch(package: str) -> None:
    modules = [
        ".".join(path.relative_to(PACKAGES[package].parent).with_suffix("").parts)
        for owner, path in sources()
        if owner == package
    ]
    heavy = ("torch", "transformers", "numpy", "safetensors", "pydantic", "steering_engine")
    script = (
        f"import importlib, sys\n[importlib.import_module(name) for name in {modules!r}]\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
