"""Clients that are not ours: `buf curl` over reflection, and the example in Node. By the docs' own commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steering_client import Client, SamplingParams, SteeringRule
from tests.support.certificates import Authority, write_secret
from tests.support.server import LiveServer

ROOT = Path(__file__).parents[2]
NODE = ROOT / "examples/clients/node"
BUF = str(Path(sys.executable).parent / "buf")
SPEC = {
    "text": "hi",
    "sampling": {"maxTokenCount": 6, "seed": "3"},
    "steering": {"rules": [{"vector": "vectors/calm", "strength": 2}]},
}
TOKEN = "generate-token-0123456789"  # noqa: S105 -- of no other server
MISSING_NODE = "Node and npm are not on the path"


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def curl(live: LiveServer, method: str, message: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    address = f"http://{live.address}/steering.v1.{method}"
    return run(
        *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(message), address)
    )


def expected(live: LiveServer) -> str:
    """What our own client gets."""
    with Client(live.address) as client:
        return client.generate(
            "hi",
            sampling=SamplingParams(max_tokens=6, seed=3),
            steering=SteeringRule("vectors/calm", strength=2),
        ).text


class TestBufCurl:
    """It has no protos: the server's reflection tells it everything."""

    def test_it_generates_with_steering(self, live: LiveServer) -> None:
        done = curl(live, "GenerationService/Generate", {"spec": SPEC})
        assert done.returncode == 0, done.stderr
        [result] = json.loads(done.stdout)["results"]
        assert result["text"] == expected(live)
        assert result["usage"]["steeredRowCount"] == 6

    def test_it_generates_over_tls_with_a_token(self, model_folder: Path, tmp_path: Path) -> None:
        authority = Authority()
        (tmp_path / "ca.pem").write_bytes(authority.ca)
        cert, key = authority.sign().write(tmp_path)
        tokens = write_secret(tmp_path / "tokens", f"alice generate {TOKEN}\n")
        spec = json.dumps({"spec": {"text": "hi", "sampling": {"maxTokenCount": 1}}})
        with LiveServer(model_folder, tls_cert=cert, tls_key=key, token_file=tokens) as server:
            address = f"https://{server.address}/steering.v1.GenerationService/Generate"
            options = ("--protocol", "grpc", "--cacert", str(tmp_path / "ca.pem"), "--reflect-header", "*")
            header = ("--header", f"authorization: Bearer {TOKEN}")
            done = run(BUF, "curl", *options, *header, "-d", spec, address)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"][0]["usage"]["generatedTokenCount"] == 1

    def test_it_is_told_what_is_wrong(self, live: LiveServer) -> None:
        done = curl(live, "GenerationService/Generate", {"spec": {**SPEC, "text": ""}})
        assert done.returncode != 0
        assert json.loads(done.stderr)["code"] == "invalid_argument"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages, and with the code that its plugin generates."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", ".npmrc", "buf.gen.yaml", "generate.js"):
        shutil.copy(NODE / name, folder)
    # Its buf, a large optional package, is the one that is here already.
    installed = run("npm", "ci", "--ignore-scripts", "--omit=optional", "--no-audit", cwd=folder)
    if installed.returncode:
        pytest.skip(f"npm can't install the packages of the example: {installed.stderr[-300:]}")
    built = run(BUF, "generate", str(ROOT / "protos"), cwd=folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason=MISSING_NODE)
class TestNode:
    def generate(self, example: Path, live: LiveServer, vector: str) -> subprocess.CompletedProcess[str]:
        return run(
            *("node", "generate.js", "--target", f"http://{live.address}", "--prompt", "hi"),
            *("--tokens", "6", "--seed", "3", "--vector", vector, "--strength", "2"),
            cwd=example,
        )

    def test_it_streams_a_steered_completion(self, example: Path, live: LiveServer) -> None:
        done = self.generate(example, live, "vectors/calm")
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected(live) + "\n"
        assert "models/tiny: 3 layers" in done.stderr
        assert "6 tokens, ended by LENGTH, 6 rows steered by vectors/calm@" in done.stderr

    def test_it_is_told_what_is_wrong(self, example: Path, live: LiveServer) -> None:
        done = self.generate(example, live, "vectors/absent")
        assert done.returncode == 1
        assert "NotFound: steering.rules[0].vector" in done.stderr
        assert done.stdout == ""
