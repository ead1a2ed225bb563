"""The server's certificate and key, and the authorities of its clients: read, judged, and given to gRPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from steering_server.errors import StartError
from steering_server.security.secret_files import read_file, read_secret

T = TypeVar("T")
Configuration: TypeAlias = Any
"""A certificate configuration of gRPC, whose type stubs have no name that exists."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a TLS handshake needs, in PEM.

    Attributes:
        chain: The server's certificate, and those between it and its authority.
        key: Its private key.
        client_ca: Authorities of clients; None asks clients for no certificate.
        not_after: When the server's certificate expires.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    not_after: datetime


def read_certificates(cert: Path, key: Path, client_ca: Path | None) -> Certificates:
    """Reads and judges the files.

    Raises:
        StartError: Something is wrong with them, all of it at once: a file can't be read or is none of its kind, the
            key belongs to another certificate, or a certificate is not valid now.
    """
    faults: list[str] = []
    chain, chain_faults = _read("certificate", read_file, cert, _load_chain)
    private, key_faults = _read("private key", read_secret, key, _load_key)
    faults += chain_faults + key_faults
    authorities: bytes | None = None
    if client_ca is not None:
        read, ca_faults = _read("certificate", read_file, client_ca, _load_certificates)
        faults += ca_faults
        authorities = read[0] if read else None
    if chain:
        own = chain[1][0]
        faults += [f"{str(cert)!r}: {text}" for text in _validity(own)]
        if private and _public(own.public_key()) != _public(private[1].public_key()):
            faults.append(f"{str(key)!r} is not the key of the certificate in {str(cert)!r}")
    if faults or chain is None or private is None:
        raise StartError("; ".join(faults))
    return Certificates(chain[0], private[0], authorities, chain[1][0].not_valid_after_utc)


class ServerCredentials:
    """Credentials of a listening server, whose certificates may be replaced; running connections keep theirs."""

    def __init__(self, certificates: Callable[[], Certificates]) -> None:
        """Takes what gives the certificates of now."""
        self._certificates = certificates
        self._told = certificates()

    def grpc(self) -> grpc.ServerCredentials:
        """The credentials as gRPC takes them."""
        fetch: Any = self._fetch  # its type stubs lack the None that says that nothing has changed
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._told), fetch, require_client_authentication=bool(self._told.client_ca)
        )

    def _fetch(self) -> Configuration | None:
        # Called at every handshake, by a thread of gRPC.
        current = self._certificates()
        if current is self._told:
            return None
        self._told = current
        return _configuration(current)


def _configuration(certificates: Certificates) -> Configuration:
    pair = (certificates.key, certificates.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=certificates.client_ca)


def _read(
    kind: str, read: Callable[[Path], bytes], path: Path, load: Callable[[bytes], T]
) -> tuple[tuple[bytes, T] | None, list[str]]:
    """The bytes of a file and what they are, or what is wrong with it."""
    try:
        data = read(path)
    except StartError as error:
        return None, [str(error)]
    try:
        return (data, load(data)), []
    except TypeError:
        return None, [f"{str(path)!r} is encrypted; expected a key without a passphrase"]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        # The library's own text may quote what it found.
        return None, [f"{str(path)!r} does not hold what is expected, a {kind} in PEM"]


def _load_chain(data: bytes) -> list[x509.Certificate]:
    chain = _load_certificates(data)
    # Read on demand, and not readable in every certificate.
    _public(chain[0].public_key())
    _validity(chain[0])
    return chain


def _load_certificates(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data)


def _load_key(data: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(data, password=None)


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _validity(certificate: x509.Certificate) -> list[str]:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return [f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"]
    if now < certificate.not_valid_before_utc:
        return [f"the certificate is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"]
    return []
