"""Everything about who may talk to a server, read at its start and kept up to date while it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import grpc

from steering_server.address import is_loopback
from steering_server.config import ServerConfig
from steering_server.errors import StartError, faults_of
from steering_server.security.certificates import Certificates, ServerCredentials, read_certificates
from steering_server.security.tokens import Tokens, read_tokens
from steering_server.security.watched import Watched

_SHORT = timedelta(days=14)


class Credentials:
    """The certificates and tokens of one server, as its configuration names them."""

    def __init__(self, config: ServerConfig) -> None:
        """Reads them all.

        Raises:
            StartError: Something is wrong with them; all of it at once.
        """
        self._config = config
        self._certificates: Watched[Certificates] | None = None
        self._tokens: Watched[Tokens] | None = None
        if faults := faults_of(self._read_certificates, self._read_tokens):
            raise StartError("; ".join(faults))

    def _read_certificates(self) -> None:
        cert, key, authorities = self._config.tls_cert, self._config.tls_key, self._config.tls_client_ca
        if cert is not None and key is not None:
            files = [cert, key, *([authorities] if authorities else [])]
            read = partial(read_certificates, cert, key, authorities)
            self._certificates = Watched("the certificates", files, read)

    def _read_tokens(self) -> None:
        if (path := self._config.token_file) is not None:
            self._tokens = Watched("the tokens", [path], partial(read_tokens, path))

    @property
    def needs_tokens(self) -> bool:
        """Whether calls need a token."""
        return self._tokens is not None

    def tokens(self) -> Tokens:
        """The tokens of now; only where calls need one."""
        assert self._tokens is not None  # noqa: S101 -- the caller's part of the contract
        return self._tokens.value

    @property
    def has_tls(self) -> bool:
        """Whether the server speaks TLS."""
        return self._certificates is not None

    def certificate_expiry(self) -> datetime:
        """When the certificate of now expires; only with TLS."""
        return self._certificate().not_after

    def grpc(self) -> grpc.ServerCredentials | None:
        """The credentials as gRPC takes them, which follow the certificates; None without TLS."""
        return ServerCredentials(self._certificate).grpc() if self._certificates else None

    def look(self) -> None:
        """Reads again what has changed. Not from an event loop: files may be slow."""
        for watched in (self._certificates, self._tokens):
            if watched is not None:
                watched.look()

    def warnings(self) -> list[str]:
        """What an operator should know about who may talk to this server."""
        found = []
        config = self._config
        if not is_loopback(config.host):
            if not self.has_tls:
                found.append("without TLS everyone on the way can read and change what is sent")
            if not self.needs_tokens and config.tls_client_ca is None:
                found.append(
                    "everyone who reaches the port may generate and load vectors; see --token-file, --tls-client-ca"
                )
        if self.needs_tokens and not self.tokens().entries:
            found.append("the token file holds no token, so no call is let in")
        if self.has_tls and self.certificate_expiry() - datetime.now(UTC) < _SHORT:
            found.append(f"the certificate expires on {self.certificate_expiry():%Y-%m-%d %H:%M} UTC")
        return found

    def _certificate(self) -> Certificates:
        assert self._certificates is not None  # noqa: S101 -- the caller's part of the contract
        return self._certificates.value
