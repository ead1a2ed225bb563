"""As much of HTTP/2 as it takes to send gRPC what no library would send."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4


class Connection:
    """A connection that says what it is told to; streams are numbered 1, 3, 5 and so on."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._read = self._socket.makefile("rb")
        self._socket.sendall(_PREFACE)
        self.frame(SETTINGS, 0, 0, b"")

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Sends a frame."""
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
        self._socket.sendall(head + payload)

    def call(self, stream: int, method: str, data: bytes) -> None:
        """Sends a call, and these bytes for its message: the five of the message's head among them."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        self.frame(HEADERS, _END_HEADERS, stream, b"".join(_literal(*field) for field in fields.items()))
        self.frame(DATA, _END_STREAM, stream, data)

    def end_of(self, stream: int) -> int:
        """Waits for the end of a stream: the kind of the frame that ended it, GOAWAY where the connection ended."""
        while len(head := self._read.read(9)) == 9:
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            self._read.read(length)
            if kind == SETTINGS and not flags & _ACK:
                self.frame(SETTINGS, _ACK, 0, b"")
            ends = kind == RST_STREAM or (kind in {DATA, HEADERS} and flags & _END_STREAM)
            if ends and int.from_bytes(head[5:], "big") == stream:
                return kind
        return GOAWAY

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read.close()
        self._socket.close()


def _literal(name: str, value: str) -> bytes:
    """A header field that is not in any table (RFC 7541, 6.2.2); both texts are shorter than 127."""
    return b"".join((b"\x00", *(bytes((len(text),)) + text.encode() for text in (name, value))))
