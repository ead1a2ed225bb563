"""Ledgers that are damaged, or that one may not write or read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.errors import LedgerError
from steering_pts.export import TABLES
from steering_pts.ledger import Ledger, LedgerReader
from steering_pts.ledger.tables import ROLLOUTS
from tests.support.ledger import SETTINGS, changed, contents, decode, fill, rollout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound ledger."""
    path = tmp_path_factory.mktemp("whole") / "run.ledger"
    with Ledger.open(path, {**SETTINGS, "search.tau": 0.2}) as ledger:
        fill(ledger)
    return path.read_bytes()


@given(data=st.data(), count=st.sampled_from([1, 5, 50]))
def test_a_damaged_ledger_is_read_or_is_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject, count: int
) -> None:
    places = st.sampled_from([place for place, byte in enumerate(whole) if byte])
    changes = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=count, max_size=count))
    damaged = bytearray(whole)
    for place, byte in changes:
        damaged[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "run.ledger"
    path.write_bytes(damaged)

    with suppress(LedgerError), Ledger.read(path) as reader:
        for read in (
            reader.settings,
            reader.summary,
            lambda: contents(reader),
            lambda: [list(table(reader).rows) for table in TABLES.values()],
            lambda: reader.export_pivots_jsonl(path.with_name("pivots.jsonl"), decode),
        ):
            with suppress(LedgerError):
                read()
    with suppress(LedgerError):
        Ledger.open(path, {**SETTINGS, "search.tau": 0.2}).close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "UPDATE rollouts SET verdict = 'maybe'",
            "a verdict among the rollouts can't be read ('maybe' is not",
        ),
        ("UPDATE rollouts SET stage = CAST(x'ff' AS TEXT)", "Could not decode to UTF-8 column 'stage'"),
        ("UPDATE rollouts SET tokens = 9223372036854775807", "integer overflow"),
    ],
)
def test_a_summary_of_damaged_rows_says_that_the_file_is_damaged(
    filled: Ledger, path: Path, change: str, said: str
) -> None:
    filled.add_rollouts([rollout(1)])
    changed(path, change)

    with pytest.raises(
        LedgerError, match=r"run\.ledger: .*the file is damaged and was left as it is"
    ) as error:
        filled.summary()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "read", "said"),
    [
        (
            "UPDATE settings SET value = '0.2}' WHERE key = 'tau'",
            LedgerReader.settings,
            "setting 'tau' can't be",
        ),
        (
            "UPDATE problems SET fields = '[1]'",
            LedgerReader.problems,
            "problem 'p1' can't be read (fields are not",
        ),
        (
            "UPDATE completions SET ids = x'01'",
            LedgerReader.completions,
            "completion 'c1' can't be read (buffer",
        ),
        (
            "UPDATE nominees SET explored = '3'",
            LedgerReader.nominees,
            "nominee 'c1' can't be read (cannot unpack",
        ),
        ("UPDATE pivots SET alternatives = '[[1, 2]]'", LedgerReader.pivots, "pivot 'c1' can't be read"),
        (
            "UPDATE rollouts SET verdict = 'maybe'",
            lambda ledger: list(ledger.stream(ROLLOUTS)),
            "rollout 'c1' can't be read ('maybe' is not a valid Verdict)",
        ),
    ],
)
def test_a_damaged_row_is_named(
    filled: Ledger, path: Path, change: str, read: Callable[[LedgerReader], object], said: str
) -> None:
    changed(path, change)

    with pytest.raises(LedgerError, match="the file is damaged and was left as it is") as error:
        read(filled)
    assert said in str(error.value)


def test_a_folder_where_nothing_can_be_written_can_be_read(whole: bytes) -> None:
    # Not below tmp_path, which root's tests can't open to the other user that they have to become.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "run.ledger")
        path.write_bytes(whole)
        path.chmod(0o644)
        path.parent.chmod(0o555)

        assert read_as_somebody(path) == f"{SETTINGS}\n"

        path.parent.chmod(0o755)
        path.with_name("run.ledger-wal").write_bytes(b"changes")
        path.parent.chmod(0o555)
        said = read_as_somebody(path)
        path.parent.chmod(0o755)
    assert f"{path} can't be read where no file can be made beside it" in said
    assert "its last changes are still in run.ledger-wal" in said


def test_a_ledger_that_is_not_ours_to_read_says_so(whole: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "run.ledger")
        path.write_bytes(whole)
        path.chmod(0)
        path.parent.chmod(0o755)

        assert read_as_somebody(path) == f"{path} can't be read: Permission denied\n"


def read_as_somebody(path: Path) -> str:
    """The settings of a ledger as a user reads them who is not root, or what is wrong."""
    code = f"""
import os
from pathlib import Path
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
if os.getuid() == 0:
    os.setuid(65534)
try:
    with Ledger.read(Path({str(path)!r})) as ledger:
        print({{key: ledger.settings()[key] for key in {list(SETTINGS)}}})
except LedgerError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
