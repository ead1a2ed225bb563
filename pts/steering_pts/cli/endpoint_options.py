"""The options of commands that ask running servers: which, and with what credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Credentials for the servers of --endpoint"

UseTls = Annotated[
    bool, typer.Option("--tls", help="TLS, with the authorities that gRPC ships.", rich_help_panel=_PANEL)
]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="TLS, with the authorities of this PEM file.", rich_help_panel=_PANEL),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(help="Our own certificate (mTLS), in PEM; with --tls-key.", rich_help_panel=_PANEL),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(help="Its private key, in PEM without a passphrase.", rich_help_panel=_PANEL),
]
TlsServerName = Annotated[
    str,
    typer.Option(
        help="Name in the servers' certificates, where it is not the endpoint's host.", rich_help_panel=_PANEL
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the bearer token and nothing else; sent over TLS, or to this machine, only.",
        rich_help_panel=_PANEL,
    ),
]
