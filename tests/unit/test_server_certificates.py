"""Certificates as files: what is wrong with them is told at once, and a change is noticed."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_server.errors import StartError
from steering_server.security.certificates import Certificates, read_certificates
from steering_server.security.watched import Watched
from tests.support.certificates import DAY, Authority, write_secret

AUTHORITY = Authority()
PAIR = AUTHORITY.sign()


def refusal(cert: Path, key: Path, client_ca: Path | None = None) -> str:
    with pytest.raises(StartError) as caught:
        read_certificates(cert, key, client_ca)
    return str(caught.value)


def test_a_pair_and_its_expiry_are_read(tmp_path: Path) -> None:
    pair = AUTHORITY.sign(ends=5 * DAY)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(AUTHORITY.ca)
    read = read_certificates(*pair.write(tmp_path), ca)
    assert (read.chain, read.key, read.client_ca) == (pair.cert, pair.key, AUTHORITY.ca)
    assert pair.key.decode() not in repr(read)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    cert, key = AUTHORITY.sign().write(tmp_path)
    key.write_bytes(AUTHORITY.sign().key)
    assert "is not the key of the certificate" in refusal(cert, key)


def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path) -> None:
    assert "expired on" in refusal(*AUTHORITY.sign(ends=-timedelta(hours=1)).write(tmp_path))
    assert "valid only from" in refusal(*AUTHORITY.sign(begins=DAY).write(tmp_path))


def test_everything_wrong_is_told_at_once_and_no_content(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", write_secret(tmp_path / "key.pem", "some secret words")
    cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    told = refusal(cert, key, tmp_path / "none.pem")
    assert f"{str(cert)!r} does not hold what is expected, a certificate in PEM" in told
    assert f"{str(key)!r} does not hold what is expected, a private key in PEM" in told
    assert "none.pem' can't be read" in told
    assert "secret words" not in told


@given(st.sampled_from(["cert", "key"]), st.integers(0, 2000), st.integers(1, 255))
def test_a_damaged_file_is_refused_or_still_whole(
    tmp_path_factory: pytest.TempPathFactory, which: str, place: int, change: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    pair = {"cert": bytearray(PAIR.cert), "key": bytearray(PAIR.key)}
    pair[which][place % len(pair[which])] ^= change
    cert, key = folder / "damaged.pem", write_secret(folder / "damaged-key.pem", bytes(pair["key"]))
    cert.write_bytes(pair["cert"])
    with suppress(StartError):
        assert read_certificates(cert, key, None).chain == pair["cert"]


def test_an_encrypted_key_and_one_that_others_may_read_are_refused(tmp_path: Path) -> None:
    pair = AUTHORITY.sign()
    cert, key = pair.write(tmp_path)
    key.write_bytes(pair.encrypted_key())
    assert "without a passphrase" in refusal(cert, key)
    key.write_bytes(pair.key)
    key.chmod(0o644)
    assert "mode 644" in refusal(cert, key)


def test_a_change_is_taken_when_it_is_whole_and_told_once_while_it_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = AUTHORITY.sign(), AUTHORITY.sign()
    cert, key = first.write(tmp_path)
    watched: Watched[Certificates] = Watched(
        "the certificates", [cert, key], partial(read_certificates, cert, key, None)
    )
    before = watched.value
    watched.look()
    assert watched.value is before
    replace(cert, second.cert)
    watched.look()
    watched.look()
    assert watched.value is before
    assert caplog.text.count("the former are kept") == 1
    replace(key, second.key)
    watched.look()
    assert watched.value.chain == second.cert
    assert "the certificates changed and are in use" in caplog.text
    key.unlink()
    watched.look()
    assert watched.value.chain == second.cert
    assert caplog.text.count("the former are kept") == 2


def replace(path: Path, data: bytes) -> None:
    """Puts another file in its place, as tools that renew certificates do."""
    new = write_secret(path.with_suffix(".new"), data)
    os.replace(new, path)  # noqa: PTH105 -- the same, and named like what it does
