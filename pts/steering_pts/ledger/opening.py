"""Opening a file as a ledger: whether it is one, and how it can be read."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from steering_pts.errors import LedgerError
from steering_pts.ledger.explaining import ERRORS, explained
from steering_pts.ledger.reader import LedgerReader
from steering_pts.ledger.schema import APPLICATION_ID, SCHEMA_VERSION


def open_for_reading(path: Path) -> LedgerReader:
    """A ledger without its lock; nothing can be written through it.

    Raises:
        LedgerError: there is no such file, it is no ledger, or it is of another schema version.
    """
    if not path.is_file():
        raise LedgerError(f"{path}: there is no such ledger")
    # To open it would tell as well, but to close it again would drop the locks that SQLite holds on it.
    if not os.access(path, os.R_OK):
        raise LedgerError(f"{path} can't be read: {os.strerror(errno.EACCES)}")
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        # SQLite shares a WAL between processes through a file beside the ledger, which it may not be able to make.
        connection.close()
        if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise LedgerError(f"{path}: {explained(error)}") from error
        connection = _connect_to_unchanging(path)
    except ERRORS:  # the check will say what it is
        pass
    try:
        check_schema(path, connection)
    except LedgerError:
        connection.close()
        raise
    return LedgerReader(path, connection)


def _connect_to_unchanging(path: Path) -> sqlite3.Connection:
    """A connection to a ledger where no file can be made beside it: a read-only device, or another user's folder."""
    changes = path.with_name(f"{path.name}-wal")
    try:
        has_changes = changes.stat().st_size > 0
    except FileNotFoundError:
        has_changes = False
    except OSError as error:
        raise LedgerError(f"{path} can't be read: {error.strerror}") from error
    if has_changes:
        raise LedgerError(
            f"{path} can't be read where no file can be made beside it, because its last changes are still in "
            f"{changes.name}; read it where it was written, or copy the folder to where you can write"
        )
    return _connect(path, "mode=ro&immutable=1")


def _connect(path: Path, options: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise LedgerError(f"{path} can't be opened: {error}") from error


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Makes sure that a database is a ledger that this version can read.

    Raises:
        LedgerError: it is not.
    """
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
    except ERRORS as error:
        raise LedgerError(f"{path}: {explained(error)}") from error
    if application != APPLICATION_ID:
        raise LedgerError(f"{path} is not a ledger: its application id is {application:#x}")
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} is a ledger of schema version {version}; this version of pts reads {SCHEMA_VERSION}"
        )
