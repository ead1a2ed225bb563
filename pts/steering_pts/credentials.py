"""How running servers are known, and let us in: TLS and a bearer token, as options name them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from steering_client import AsyncClient, Tls
from steering_pts.errors import EndpointError


@dataclass(frozen=True, slots=True)
class Credentials:
    """What every connection to a server is made with; by default nothing, which loopback needs none of.

    Attributes:
        tls: As `AsyncClient` takes it.
        token: Bearer token, sent with every call.
    """

    tls: Tls | bool = False
    token: str | None = field(default=None, repr=False)

    def connect(self, target: str) -> AsyncClient:
        """A client of the server at `host:port`; make it on the running loop.

        Raises:
            EndpointError: The token can't be sent there, or a file can't be read.
        """
        try:
            return AsyncClient(target, tls=self.tls, token=self.token)
        except (ValueError, OSError) as error:
            raise EndpointError(f"{target}: {error}") from error


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """What a command line says of credentials.

    Attributes:
        tls: TLS is wanted, whether or not a file of it is named.
        ca: PEM file of the authorities that servers' certificates come from.
        cert: PEM file of our own certificate, where servers ask for one.
        key: PEM file of its private key.
        server_name: The name in the servers' certificates, where it is not the host of the endpoint.
        token: File with the token and nothing else.
    """

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: Path | None = None

    def read(self, endpoints: int) -> Credentials:
        """Reads the files.

        Args:
            endpoints: How many servers are named that these are for.

        Raises:
            EndpointError: Something is wrong with them; all of it at once, without a word of what they hold.
        """
        faults = list(self._faults(endpoints))
        token = ""
        if self.token is not None:
            try:
                token = self.token.read_text(encoding="ascii").strip()
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
                faults.append(f"--token-file: {self.token} can't be read: {reason}")
            else:
                if len(token.split()) != 1:
                    faults.append(f"--token-file: {self.token} should hold one token and nothing else")
        if faults:
            raise EndpointError("; ".join(faults))
        tls = Tls(self.ca, self.cert, self.key, self.server_name) if self._wants_tls else False
        return Credentials(tls, token or None)

    @property
    def _wants_tls(self) -> bool:
        return self.tls or bool(self.ca or self.cert or self.key or self.server_name)

    def _faults(self, endpoints: int) -> Iterator[str]:
        if not endpoints and (self._wants_tls or self.token is not None):
            yield "TLS and tokens are for the servers of --endpoint, and none is named"
        if (self.cert is None) != (self.key is None):
            yield "--tls-cert and --tls-key go together; give both or none"
        # gRPC says nothing of files that it can't use, only that no server answered.
        context = ssl.create_default_context()
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except OSError as error:
                yield f"--tls-ca: {self.ca}: {_reason(error, 'it holds no certificate in PEM')}"
        if self.cert is not None and self.key is not None:
            try:
                # With none given, a passphrase would be asked for on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except OSError as error:
                wrong = "these are not a certificate and its key, in PEM and without a passphrase"
                yield f"--tls-cert, --tls-key: {self.cert}, {self.key}: {_reason(error, wrong)}"


def _reason(error: OSError, wrong: str) -> str:
    return wrong if isinstance(error, ssl.SSLError) else error.strerror or str(error)
