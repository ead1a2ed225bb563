"""Certificates made for a test: an authority, and what it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A certificate authority; `ca` is its own certificate in PEM."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, self._name, self._key.public_key(), 1)
        builder = builder.not_valid_before(now - 30 * DAY).not_valid_after(now + 365 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def sign(self, name: str = "localhost", *, begins: timedelta = -DAY, ends: timedelta = 90 * DAY) -> Pair:
        """A certificate for `name` and 127.0.0.1, valid from and until so long from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        builder = x509.CertificateBuilder(
            self._name, _name(name), key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(now + begins).not_valid_after(now + ends)
        certificate = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        return Pair(certificate, key)


class Pair:
    """A certificate and its key, both in PEM."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.serial = certificate.serial_number
        self.cert = certificate.public_bytes(Encoding.PEM)
        self.key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def encrypted_key(self) -> bytes:
        return self._key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a passphrase")
        )

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `cert.pem` and `key.pem` as an operator should."""
        cert, key = folder / "cert.pem", folder / "key.pem"
        cert.write_bytes(self.cert)
        write_secret(key, self.key)
        return cert, key


def write_secret(path: Path, data: bytes | str) -> Path:
    """Writes a file that its owner alone may read."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
