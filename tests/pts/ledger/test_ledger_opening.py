"""Beginning and opening a ledger: its settings, its version, its place."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from steering_pts.errors import LedgerError, LedgerSettingsError
from steering_pts.ledger import Ledger
from tests.support.ledger import SETTINGS


def test_settings_are_kept(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()

    with Ledger.read(path) as ledger:
        assert ledger.settings() == SETTINGS


def test_every_setting_that_differs_is_named_with_both_values(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()

    with pytest.raises(LedgerSettingsError) as error:
        Ledger.open(path, {"tau": 0.3, "seed": 7, "model": "tiny", "unit": "token"})

    assert error.value.differences == (
        "blocks was [0, 2] and is now not set",
        "tau was 0.2 and is now 0.3",
        'unit was not set and is now "token"',
    )


def test_the_lock_is_free_after_settings_were_refused(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()
    with pytest.raises(LedgerSettingsError):
        Ledger.open(path, {})

    Ledger.open(path, SETTINGS).close()


def test_a_setting_that_is_not_json_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="setting 'tau' is not JSON"):
        Ledger.open(path, {"tau": float("nan")})


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("some notes, long enough to be no header of a database file\n" * 20)
    before = path.read_bytes()

    for opening in (lambda: Ledger.open(path, SETTINGS), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match="file is not a database"):
            opening()
    assert path.read_bytes() == before


def test_a_database_that_is_no_ledger_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = path.read_bytes()

    for opening in (lambda: Ledger.open(path, SETTINGS), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match="is not a ledger: its application id is 0x0"):
            opening()
    assert path.read_bytes() == before


def test_a_ledger_of_another_version_is_refused(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(LedgerError, match="schema version 99; this version of pts reads 2"):
        Ledger.open(path, SETTINGS)


def test_an_empty_file_is_begun(path: Path) -> None:
    path.touch()

    with Ledger.open(path, SETTINGS) as ledger:
        assert ledger.settings() == SETTINGS


def test_folders_above_are_made(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "runs" / "first" / "run.ledger", SETTINGS).close()


def test_a_place_that_can_not_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(LedgerError, match="can't be made"):
        Ledger.open(tmp_path / "file" / "run.ledger", SETTINGS)


def test_there_must_be_a_ledger_to_read(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no such ledger"):
        Ledger.read(path)
