"""A chat endpoint on a port of its own that does what a test tells it to, good or bad."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


@dataclass
class ChatServer:
    """What the server was asked, and what it answers: the answers in turn, the last one from then on."""

    answers: list[Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    chat: ChatServer
    own: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.own = body
        with chat.lock:
            answer = chat.answers[min(len(chat.requests), len(chat.answers) - 1)]
            chat.requests.append(body)
            chat.headers.append({name.lower(): value for name, value in self.headers.items()})
            chat.paths.append(self.path)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
        try:
            answer(self)
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            with chat.lock:
                chat.at_once -= 1

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def says(text: str) -> Answer:
    """A good answer."""
    content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    return lambda handler: handler.reply(200, content)


def status(code: int, content: str = "", **headers: str) -> Answer:
    """Another status."""
    return lambda handler: handler.reply(code, content.encode(), **headers)


def raw(content: bytes) -> Answer:
    """Status 200 with any body."""
    return lambda handler: handler.reply(200, content)


def hangs(handler: Handler) -> None:
    """Answers nothing until the test is over."""
    handler.chat.released.wait(60)
    handler.close_connection = True


def drips(handler: Handler) -> None:
    """Sends a byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.chat.released.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hangs_up(handler: Handler) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


@contextmanager
def chat_server(*answers: Answer) -> Iterator[ChatServer]:
    """A server that runs until the end of the block."""
    chat = ChatServer(list(answers))
    handler = type("OwnHandler", (Handler,), {"chat": chat})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield chat
        finally:
            chat.released.set()
            server.shutdown()
            thread.join()
