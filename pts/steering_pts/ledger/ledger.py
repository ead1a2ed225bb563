"""Writing a run's ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from steering_pts.data import Problem
from steering_pts.errors import LedgerError, LedgerSettingsError
from steering_pts.ledger.lock import WriterLock
from steering_pts.ledger.opening import check_schema, open_for_reading
from steering_pts.ledger.reader import JSON, LedgerReader
from steering_pts.ledger.records import (
    CompletionRecord,
    ConfirmationRecord,
    NomineeRecord,
    PivotRecord,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.ledger.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, TRIGGERS
from steering_pts.ledger.tables import (
    COMPLETIONS,
    CONFIRMATIONS,
    NOMINEES,
    PIVOTS,
    PROBLEMS,
    ROLLOUTS,
    SCORES,
    SETTINGS,
    Table,
    Value,
)

Record = TypeVar("Record")


class Ledger(LedgerReader):
    """A run's ledger with the right to write to it.

    One SQLite file in WAL mode. Each `add_…` call is one transaction: when it returns, its records
    outlive the process (though, with synchronous=NORMAL, the last calls may be lost to a power
    failure, never half of one); when it raises, none of its records was added. Adding a record
    again does nothing where it is identical and raises LedgerError where it is not.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriterLock) -> None:
        """Wraps an open connection; `Ledger.open` makes these."""
        super().__init__(path, connection)
        self._lock = lock

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, JSON]) -> Self:
        """Begins a run's ledger, or continues it where the file exists.

        Args:
            path: the file; folders above it are made. `<path>.lock` is held beside it.
            settings: everything that decides the run's results.

        Raises:
            LedgerLockedError: another process writes to it.
            LedgerSettingsError: it was begun with other settings.
            LedgerError: it is no ledger, of another schema version, or can't be opened; or a
                setting is not JSON.
        """
        texts = {key: _canonical(key, value) for key, value in settings.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{path.parent} can't be made: {error.strerror}") from error
        lock = WriterLock(path)
        try:
            connection = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            lock.release()
            raise LedgerError(f"{path} can't be opened: {error}") from error
        ledger = cls(path, connection, lock)
        try:
            ledger._prepare(texts)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @staticmethod
    def read(path: Path) -> LedgerReader:
        """Opens a ledger for reading, without its lock, whether or not it is being written to.

        Raises:
            LedgerError: there is no such file, it is no ledger, or it is of another schema version.
        """
        return open_for_reading(path)

    def close(self) -> None:
        """Closes the file and gives up its lock; a second call does nothing."""
        super().close()
        self._lock.release()

    def add_problems(self, problems: Sequence[Problem]) -> None:
        """Adds problems; their order is kept."""
        self._add(PROBLEMS, problems)

    def add_completions(self, completions: Sequence[CompletionRecord]) -> None:
        """Adds completions of problems that were added before."""
        self._add(COMPLETIONS, completions)

    def add_scores(self, scores: Sequence[ScoreRecord]) -> None:
        """Adds scores of completions that were added before."""
        self._add(SCORES, scores)

    def add_rollouts(self, rollouts: Sequence[RolloutRecord]) -> None:
        """Adds rollouts of completions that were added before."""
        self._add(ROLLOUTS, rollouts)

    def add_nominees(self, nominees: Sequence[NomineeRecord]) -> None:
        """Adds nominees of completions that were added before."""
        self._add(NOMINEES, nominees)

    def add_confirmations(self, confirmations: Sequence[ConfirmationRecord]) -> None:
        """Adds confirmations of completions that were added before."""
        self._add(CONFIRMATIONS, confirmations)

    def write_pivots(self, pivots: Sequence[PivotRecord]) -> None:
        """Replaces all pivots.

        The one table that is not append-only: the correction for multiple tests runs over all
        nominees of the run, so each new one may change which are pivots.
        """
        rows = [PIVOTS.encode(pivot) for pivot in pivots]
        with self._transaction():
            self._connection.execute("DELETE FROM pivots")
            self._insert(PIVOTS, rows)

    def _prepare(self, settings: Mapping[str, str]) -> None:
        with self._translated():
            ((objects,),) = self._connection.execute("SELECT COUNT(*) FROM sqlite_master")
            ((application,),) = self._connection.execute("PRAGMA application_id")
        # A run that was killed before its first commit leaves a database without anything in it.
        is_new = objects == 0 and application == 0
        if not is_new:
            check_schema(self.path, self._connection)
            self._check_soundness()
        with self._translated():
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        if is_new:
            self._create(settings)
        else:
            self._compare_settings(settings)

    def _check_soundness(self) -> None:
        """Refuses a damaged file before anything is added to it."""
        with self._translated():
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed ({' '.join(verdict.split())})")

    def _create(self, settings: Mapping[str, str]) -> None:
        with self._transaction():
            for statement in (*filter(str.strip, SCHEMA.split(";")), *TRIGGERS):
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO settings VALUES (?, ?)", sorted(settings.items()))
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _compare_settings(self, settings: Mapping[str, str]) -> None:
        stored = dict(self._select(SETTINGS))
        differences = [
            f"{key} was {stored.get(key, 'not set')} and is now {settings.get(key, 'not set')}"
            for key in sorted(stored.keys() | settings.keys())
            if stored.get(key) != settings.get(key)
        ]
        if differences:
            raise LedgerSettingsError(self.path, differences)

    def _add(self, table: Table[Record], records: Sequence[Record]) -> None:
        rows = [table.encode(record) for record in records]
        with self._transaction():
            self._insert(table, rows)

    def _insert(self, table: Table[Record], rows: Sequence[tuple[Value, ...]]) -> None:
        before = self._connection.total_changes
        self._connection.executemany(table.insert, rows)
        if self._connection.total_changes - before == len(rows):
            return
        query = table.select(table.keys)
        for row in rows:
            key = table.key_of(row)
            if self._connection.execute(query, key).fetchall() != [row]:
                raise LedgerError(
                    f"{self.path}: {table.noun} {', '.join(map(str, key))} (or one in its place) is there "
                    "already with other contents"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has ended the transaction itself after some errors, such as a full disk.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _canonical(key: str, value: JSON) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"setting {key!r} is not JSON: {error}") from error
