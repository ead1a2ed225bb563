"""The token file: what it may hold, and that it never tells what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_server.errors import StartError
from steering_server.security.tokens import Scope, TokenHolder, Tokens, read_tokens
from tests.support.certificates import write_secret

SECRET = "a-token-of-some-length/+=="  # noqa: S105 -- of no server
OTHER = "another-token-of-some-length"


def tokens_of(folder: Path, text: str) -> Tokens:
    return read_tokens(write_secret(folder / "tokens", text))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(StartError) as caught:
        tokens_of(folder, text)
    return str(caught.value)


def test_a_token_has_a_name_and_scopes(tmp_path: Path) -> None:
    text = f"# comment\n\nalice generate {SECRET}\nops generate,admin {OTHER}\n"
    tokens = tokens_of(tmp_path, text)
    assert tokens.holder(SECRET) == TokenHolder("alice", frozenset({Scope.GENERATE}))
    assert tokens.holder(OTHER) == TokenHolder("ops", frozenset(Scope))
    assert tokens.holder(SECRET[:-1]) is None
    assert tokens.holder("") is None


def test_the_digest_may_stand_in_place_of_the_token(tmp_path: Path) -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    tokens = tokens_of(tmp_path, f"alice admin sha256:{digest}")
    assert tokens.holder(SECRET) == TokenHolder("alice", frozenset({Scope.ADMIN}))
    assert tokens.holder(digest) is None
    assert tokens.holder(f"sha256:{digest}") is None


def test_memory_holds_digests_only(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, f"alice generate {SECRET}")
    assert [digest for digest, _ in tokens.entries] == [hashlib.sha256(SECRET.encode()).digest()]
    assert SECRET not in repr(tokens)


def test_everything_wrong_is_told_by_line_and_no_secret_is(tmp_path: Path) -> None:
    lines = [
        f"alice generate {SECRET}",
        f"alice generate {OTHER}",  # the name again
        f"bob generate {SECRET}",  # the token again
        f"carol {OTHER} generate",  # in the wrong order
        "dave generate short",
        f"erin generate {OTHER} generate",
        f"frank! root {OTHER}",
    ]
    told = refusal(tmp_path, "\n".join(lines))
    expected = {
        2: "the name stands above already",
        3: "the token stands above already",
        4: "scopes are generate, admin, or generate,admin",
        5: "a token has 20 to 512",
        6: "expected three words",
        7: "a name has at most 64",
    }
    for number, text in expected.items():
        assert f"line {number}: {text}" in told
    assert "line 1" not in told
    for secret in (SECRET, OTHER, "short"):
        assert secret not in told


@given(st.text())
def test_any_text_is_read_or_refused_without_being_told(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    line = f"x generate {SECRET} {text}"
    path = write_secret(folder / "tokens", line.encode("utf-8", "surrogatepass"))
    try:
        tokens = read_tokens(path)
    except StartError as caught:
        told = str(caught)
    else:
        told = ""
        assert tokens.holder(SECRET) is not None
    assert SECRET not in told


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o660, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_secret(tmp_path / "tokens", f"alice generate {SECRET}")
    path.chmod(mode)
    with pytest.raises(StartError, match=f"mode {mode:03o}.*chmod 600"):
        read_tokens(path)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_its_owner_and_its_group_may_read_it(tmp_path: Path, mode: int) -> None:
    path = write_secret(tmp_path / "tokens", f"alice generate {SECRET}")
    path.chmod(mode)
    assert read_tokens(path).holder(SECRET) is not None


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="can't be read: No such file"):
        read_tokens(tmp_path / "none")
    with pytest.raises(StartError, match="can't be read: Is a directory"):
        read_tokens(tmp_path)
    assert "larger than" in refusal(tmp_path, "#" * (1 << 20) + "\n")
    assert "more than ASCII" in refusal(tmp_path, f"älice generate {SECRET}")
