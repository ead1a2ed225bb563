"""Load balancers of other people, run with the configurations in examples/deploy in front of replicas of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.certificates import Authority
from tests.support.server import LiveServer, wait_until

DEPLOY = Path(__file__).parents[2] / "examples/deploy"


def find_program(name: str) -> str | None:
    """Where a program is: in this environment, or on the path."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin")
    return shutil.which(name, path=os.pathsep.join(places))


@contextmanager
def envoy(replicas: Sequence[LiveServer], authority: Authority, folder: Path) -> Iterator[str]:
    """Envoy on a free port; yields its address."""
    config: Any = yaml.safe_load(_with_files(DEPLOY / "envoy.yaml", "/etc/envoy", authority, folder))
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    [endpoints] = resources["clusters"][0]["load_assignment"]["endpoints"]
    for replica, one in zip(replicas, endpoints["lb_endpoints"], strict=True):
        host, _, port = replica.address.rpartition(":")
        one["endpoint"] = {
            "address": {"socket_address": {"address": host, "port_value": int(port)}},
            "hostname": "localhost",
        }
    resources["clusters"][0]["health_checks"][0] |= {"interval": "0.1s", "no_traffic_interval": "0.1s"}
    config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    command = [find_program("envoy"), "-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1"]
    with _running([*command, "--admin-address-path", "admin"], folder):
        wait_until(lambda: (folder / "admin").exists() and bool((folder / "admin").read_text()))
        admin = (folder / "admin").read_text()

        def listeners() -> str:
            with urllib.request.urlopen(f"http://{admin}/listeners?format=text") as answer:
                return str(answer.read().decode())

        wait_until(lambda: "steering::" in listeners())
        yield listeners().strip().rpartition("steering::")[2]


@contextmanager
def nginx(replicas: Sequence[LiveServer], authority: Authority, folder: Path) -> Iterator[str]:
    """Nginx on a port that was free; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = _with_files(DEPLOY / "nginx.conf", "/etc/nginx", authority, folder)
    text = text.replace("listen 50051", f"listen 127.0.0.1:{port}").replace("replica.internal;", "localhost;")
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"replica-{number}.internal:50051", replica.address)
    # Whoever runs it, it needs no other folder than its own.
    own = [f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    text = text.replace("http {", "\n".join(["http {", "access_log off;", *own]))
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/pid;\n{text}")
    command = [find_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with _running(command, folder):
        wait_until(lambda: _listens(port))
        yield f"127.0.0.1:{port}"


def _with_files(path: Path, place: str, authority: Authority, folder: Path) -> str:
    """A configuration whose certificates are made here."""
    authority.sign().write(folder)
    (folder / "replicas-ca.pem").write_bytes(authority.ca)
    return path.read_text().replace(f"{place}/", f"{folder}/")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _running(command: Sequence[str | None], folder: Path) -> Iterator[None]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
