"""A server on this machine that takes commits as the Hugging Face Hub does, and keeps what it was given."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What has arrived.

    Attributes:
        address: `http://host:port`.
        created: What was said of repositories to be made.
        files: Content by `kind/owner/name/path`.
        tokens: Authorisation headers.
        refuses: Answer every request with 403.
    """

    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: bool = False

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What the Hub says to a POST, as far as an upload of small files goes."""
        parts = path.split("?", maxsplit=1)[0].strip("/").split("/")
        if parts[1] == "repos":
            self.created.append(json.loads(body))
            made = self.created[-1]
            kind = "" if made["type"] == "model" else f"{made['type']}s/"
            return {"url": f"{self.address}/{kind}{made['organization']}/{made['name']}"}
        if parts[1] == "validate-yaml":
            return {"errors": [], "warnings": []}
        repository = "/".join(parts[1:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files
                ]
            }
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                value = operation["value"]
                self.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
        return {
            "commitUrl": f"{self.address}/{repository}/commit/0",
            "commitOid": "0" * 40,
            "hookOutput": "",
            "pullRequestUrl": None,
        }


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server on a free port."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("authorization", ""))
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self._send(
                {"error": "no"} if hub.refuses else hub.answer(self.path, body), 403 if hub.refuses else 200
            )

        def do_GET(self) -> None:
            self._send({"id": "me/it", "sha": "0" * 40, "siblings": []}, 403 if hub.refuses else 200)

        def _send(self, answer: dict[str, Any], code: int) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
