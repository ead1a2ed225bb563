"""How a client knows its server, and is known by it: TLS and bearer tokens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


@dataclass(frozen=True, slots=True)
class Tls:
    """What TLS needs; each in PEM, as a path or as its bytes.

    Attributes:
        ca: Authorities that the server's certificate may come from; None takes those that gRPC ships.
        cert: The client's own certificate, where the server asks for one.
        key: Its private key.
        server_name: The name that the server's certificate is for, where that is not the host of the target.
    """

    ca: Path | bytes | None = None
    cert: Path | bytes | None = None
    key: Path | bytes | None = field(default=None, repr=False)
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client's certificate and its key go together; give both or none")


@dataclass(frozen=True, slots=True)
class Security:
    """What a channel and its calls are made with.

    Attributes:
        credentials: Credentials of the channel; None means that it is not encrypted.
        options: Options of the channel.
        metadata: Metadata of every call.
    """

    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, Any], ...]
    metadata: tuple[tuple[str, str], ...] = field(repr=False)


def security_of(target: str, tls: Tls | bool, token: str | None) -> Security:
    """What TLS and a token, as callers give them, mean for a channel.

    Raises:
        ValueError: The token can't be one, or would travel to another machine unencrypted. Its text is never told.
        OSError: A file can't be read.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("a token is made of letters, digits and . _ ~ + / -, with = at its end")
    if tls:
        settings = tls if isinstance(tls, Tls) else Tls()
        credentials = grpc.ssl_channel_credentials(
            _bytes(settings.ca), _bytes(settings.key), _bytes(settings.cert)
        )
        if token is not None:
            # gRPC itself sees to it that these never travel without TLS.
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(token)
            )
        name = settings.server_name
        return Security(credentials, (("grpc.ssl_target_name_override", name),) if name else (), ())
    if token is None:
        return Security(None, (), ())
    if not is_loopback(target):
        raise ValueError(
            f"a token is sent over TLS or to this machine only, and {target!r} is neither; "
            "give tls=True or tls=Tls(...)"
        )
    # Without the option a proxy that the environment names would get the token.
    return Security(None, (("grpc.enable_http_proxy", 0),), (("authorization", f"Bearer {token}"),))


def is_loopback(target: str) -> bool:
    """Whether a gRPC target is this machine: `localhost`, a loopback address, or a socket of the file system."""
    scheme, colon, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"} and colon:
        return True
    if scheme in {"dns", "ipv4", "ipv6"} and colon:
        target = rest.removeprefix(
            "///"
        )  # after two slashes stands another machine, which is asked for the address
    # Several addresses may stand in one target.
    return all(_is_loopback_host(_host(unquote(address))) for address in target.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.partition(":")
    return address if address.count(":") > 1 else host if colon else address


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bytes(source: Path | bytes | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source
