"""Generates the protobuf modules, as hatchling's build hook and as `make proto`.

The generated code is never committed. grpcio-tools is called as a module so that it finds google's own protos.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate_protobuf(root: Path = ROOT) -> list[Path]:
    """Writes `*_pb2.py`, `*_pb2_grpc.py` and their stubs beside the protos.

    Raises:
        subprocess.CalledProcessError: protoc refused a proto; its message went to stderr.
    """
    protos = sorted((root / "protos" / "steering" / "v1").glob("*.proto"))
    outputs = [f"--{kind}_out={root / 'protos'}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root / 'protos'}", *outputs, *map(str, protos)]
    subprocess.run(command, check=True, cwd=root)  # noqa: S603 -- the arguments are this repository's own files
    return protos


class ProtobufBuildHook(BuildHookInterface[Any]):
    """Runs the generator before a wheel or an editable install is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling's signature
        """Generates the modules in place; `artifacts` in pyproject.toml takes them into the wheel."""
        generate_protobuf(Path(self.root))


if __name__ == "__main__":
    generate_protobuf()
