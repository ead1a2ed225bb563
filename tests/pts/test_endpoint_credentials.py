"""Commands that ask servers with TLS, a client's certificate and tokens; certificates are made here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from steering_client import Tls
from steering_engine.loading import load_model
from steering_pts import remote_rollouts
from steering_pts.cli.run import RunFolder
from steering_pts.credentials import CredentialFiles, Credentials
from steering_pts.errors import EndpointError
from tests.support.certificates import Authority, write_secret
from tests.support.evaluation import save_vectors
from tests.support.pts import ORACLE, discover_arguments, run_pts, write_problems
from tests.support.server import LiveServer

AUTHORITY = Authority()
NO_PAIR = "these are not a certificate and its key, in PEM and without a passphrase"
GENERATE = "generate-token-0123456789"
BOTH = "both-scopes-token-0123456789"


@dataclass(frozen=True)
class Guarded:
    """A server that wants a certificate and a token, and the files of somebody whom it lets in."""

    server: LiveServer
    folder: Path

    def options(self, token: str) -> list[str]:
        return [
            *("--endpoint", self.server.address),
            *("--tls-ca", str(self.folder / "ca.pem")),
            *("--tls-cert", str(self.folder / "own/cert.pem")),
            *("--tls-key", str(self.folder / "own/key.pem")),
            *("--token-file", str(self.folder / token)),
        ]


@pytest.fixture(scope="module")
def guarded(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "ca.pem").write_bytes(AUTHORITY.ca)
    (folder / "own").mkdir()
    AUTHORITY.sign("a client").write(folder / "own")
    write_secret(folder / "generate", f"{GENERATE}\n")
    write_secret(folder / "both", BOTH)
    cert, key = AUTHORITY.sign().write(folder)
    tokens = write_secret(folder / "tokens", f"a generate {GENERATE}\nb generate,admin {BOTH}\n")
    settings = {"tls_cert": cert, "tls_key": key, "tls_client_ca": folder / "ca.pem", "token_file": tokens}
    with LiveServer(ending_folder, **settings) as server:
        yield Guarded(server, folder)


def test_discovery_through_a_guarded_server_ends_as_one_without(
    guarded: Guarded, ending_folder: Path, tmp_path: Path
) -> None:
    problems = write_problems(tmp_path / "problems.jsonl", 2)
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    before = guarded.server.stats().generated_tokens
    for folder, *more in ((here,), (there, *guarded.options("generate"))):
        ended = run_pts(*discover_arguments(folder.path, ending_folder, problems, *more))
        assert ended.code == 0, ended.err
        assert GENERATE not in ended.out + ended.err
    assert guarded.server.stats().generated_tokens > before
    assert there.pivots.read_bytes() == here.pivots.read_bytes()


def test_an_evaluation_loads_its_vectors_where_the_token_lets_it(
    guarded: Guarded, ending_folder: Path, tmp_path: Path
) -> None:
    paths = save_vectors(tmp_path / "vectors", load_model(str(ending_folder)))[:1]
    data = write_problems(tmp_path / "problems.jsonl", 2)
    arguments = [
        *("evaluate", *map(str, paths), "--dataset", str(data), "--oracle", ORACLE, "--out", str(tmp_path)),
        *("--max-tokens", "4", "--samples", "1", "--arm", "strength_0", "--no-kl"),
    ]

    refused = run_pts(*arguments, *guarded.options("generate")).error()

    assert refused.startswith(f"{guarded.server.address} does not load ")
    assert "the scope admin" in refused

    ended = run_pts(*arguments, *guarded.options("both"))

    assert ended.code == 0, ended.err
    assert BOTH not in ended.out + ended.err


def test_a_server_that_wants_more_is_named(
    guarded: Guarded, ending_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_rollouts, "_CONNECT_SECONDS", 1.0)
    problems = write_problems(tmp_path / "problems.jsonl", 1)
    arguments = discover_arguments(tmp_path / "run", ending_folder, problems)
    options, address = guarded.options("generate"), guarded.server.address

    without_token = run_pts(*arguments, *options[:-2]).error()
    without_tls = run_pts(*arguments, *options[:2]).error()

    assert without_token.startswith(f"{address}: this server takes no call without a token")
    assert without_tls == f"no server answered at {address} within 1.0 s"


def test_everything_wrong_with_the_files_is_told_at_once_without_what_they_hold(tmp_path: Path) -> None:
    pair, other = AUTHORITY.sign(), AUTHORITY.sign()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(pair.cert)
    key.write_bytes(other.key)
    (tmp_path / "ca.pem").write_text("no certificate")
    (tmp_path / "token").write_text(f"a generate {GENERATE}\n")
    files = CredentialFiles(ca=tmp_path / "ca.pem", cert=cert, key=key, token=tmp_path / "token")

    with pytest.raises(EndpointError) as caught:
        files.read(endpoints=0)

    assert str(caught.value).split("; ") == [
        "TLS and tokens are for the servers of --endpoint, and none is named",
        f"--tls-ca: {tmp_path / 'ca.pem'}: it holds no certificate in PEM",
        f"--tls-cert, --tls-key: {cert}, {key}: {NO_PAIR}",
        f"--token-file: {tmp_path / 'token'} should hold one token and nothing else",
    ]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            CredentialFiles(token=Path("absent")),
            "--token-file: absent can't be read: No such file or directory",
        ),
        (CredentialFiles(ca=Path("absent")), "--tls-ca: absent: No such file or directory"),
        (CredentialFiles(key=Path("absent")), "--tls-cert and --tls-key go together; give both or none"),
    ],
)
def test_a_file_that_is_missing_is_named(files: CredentialFiles, told: str) -> None:
    with pytest.raises(EndpointError) as caught:
        files.read(endpoints=1)
    assert str(caught.value) == told


def test_a_passphrase_is_not_asked_for(tmp_path: Path) -> None:
    pair = AUTHORITY.sign()
    cert, key = pair.write(tmp_path)
    key.write_bytes(pair.encrypted_key())
    with pytest.raises(EndpointError, match="without a passphrase"):
        CredentialFiles(cert=cert, key=key).read(endpoints=1)


def test_tls_alone_trusts_the_usual_authorities() -> None:
    assert CredentialFiles(tls=True).read(endpoints=1) == Credentials(tls=Tls())
    assert CredentialFiles().read(endpoints=1) == Credentials()


async def test_a_token_never_travels_unencrypted_to_another_machine() -> None:
    with pytest.raises(
        EndpointError, match=r"^example\.org:1: a token is sent over TLS or to this machine only"
    ):
        Credentials(token=GENERATE).connect("example.org:1")
