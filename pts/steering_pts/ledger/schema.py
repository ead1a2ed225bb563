"""The SQLite schema of a ledger.

A change of it is a new SCHEMA_VERSION; a ledger of another version is refused. The triggers are no part of that: what
they refuse is never done, and a ledger that was begun without them is read and continued as any other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from types import NoneType
from typing import Final

APPLICATION_ID: Final = 0x50545331  # "PTS1", at byte 68 of the file
SCHEMA_VERSION: Final = 2

SCHEMA: Final = """
CREATE TABLE settings (
    key TEXT PRIMARY KEY, value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE problems (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    question TEXT NOT NULL, answer TEXT NOT NULL, fields TEXT NOT NULL
) STRICT;

CREATE TABLE completions (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    problem_id TEXT NOT NULL REFERENCES problems (id), "index" INTEGER NOT NULL,
    seed INTEGER NOT NULL, prompt_ids BLOB NOT NULL, ids BLOB NOT NULL,
    verdict TEXT NOT NULL, extracted TEXT, finish_reason TEXT NOT NULL, failed INTEGER NOT NULL,
    UNIQUE (problem_id, "index")
) STRICT;

CREATE TABLE scores (
    completion_id TEXT PRIMARY KEY REFERENCES completions (id), probabilities BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rollouts (
    completion_id TEXT NOT NULL REFERENCES completions (id), position INTEGER NOT NULL,
    arm TEXT NOT NULL, stage TEXT NOT NULL, "index" INTEGER NOT NULL,
    seed INTEGER NOT NULL, ids BLOB NOT NULL, verdict TEXT NOT NULL, extracted TEXT,
    tokens INTEGER NOT NULL, failed INTEGER NOT NULL,
    PRIMARY KEY (completion_id, position, arm, stage, "index")
) STRICT, WITHOUT ROWID;

CREATE TABLE nominees (
    completion_id TEXT NOT NULL REFERENCES completions (id), position INTEGER NOT NULL,
    sign INTEGER NOT NULL, posterior REAL NOT NULL, effect REAL NOT NULL, explored TEXT NOT NULL,
    on_path INTEGER NOT NULL, alternative INTEGER NOT NULL,
    PRIMARY KEY (completion_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE confirmations (
    completion_id TEXT NOT NULL REFERENCES completions (id), position INTEGER NOT NULL,
    x1 INTEGER NOT NULL, n1 INTEGER NOT NULL, censored1 INTEGER NOT NULL,
    x2 INTEGER NOT NULL, n2 INTEGER NOT NULL, censored2 INTEGER NOT NULL, leave REAL NOT NULL,
    p_value REAL NOT NULL, delta REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    PRIMARY KEY (completion_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE pivots (
    completion_id TEXT NOT NULL REFERENCES completions (id),
    problem_id TEXT NOT NULL REFERENCES problems (id), position INTEGER NOT NULL,
    ids BLOB NOT NULL, probability REAL NOT NULL,
    delta REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    p_value REAL NOT NULL, q_value REAL NOT NULL,
    chosen_ids BLOB NOT NULL, rejected_ids BLOB NOT NULL, alternatives TEXT NOT NULL,
    PRIMARY KEY (completion_id, position)
) STRICT, WITHOUT ROWID;
"""

APPEND_ONLY: Final = (
    "settings",
    "problems",
    "completions",
    "scores",
    "rollouts",
    "nominees",
    "confirmations",
)
TRIGGERS: Final = tuple(
    f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} are only ever added to'); END"
    for table in APPEND_ONLY
    for change in ("UPDATE", "DELETE")
)

_TYPES: Final[Mapping[str, type]] = {"INTEGER": int, "REAL": float, "TEXT": str, "BLOB": bytes}


@cache
def column_types(table: str) -> Mapping[str, tuple[type, ...]]:
    """What each column of a table is read as."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(SCHEMA)
        columns = empty.execute('SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (table,))
        return {
            name: (_TYPES[kind],) if is_required or is_key else (_TYPES[kind], NoneType)
            for name, kind, is_required, is_key in columns
        }
