"""Addresses to listen on."""

from __future__ import annotations

import ipaddress
import socket

from steering_server.errors import StartError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host: `localhost` or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def join_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_address(host: str, port: int) -> None:
    """Checks that the address is free.

    Called before the model is loaded: better to fail now than minutes later, and gRPC itself names no reason.

    Raises:
        StartError: The port is taken, or the host has no such address.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            # Else a port whose last connections are still winding down would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartError(f"can't listen on {join_address(host, port)}: {error.strerror or error}") from error
