"""Reading a run's ledger, also while another process writes to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from steering_pts.closing import Closing
from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.ledger.explaining import DAMAGED, ERRORS, explained, on_one_line
from steering_pts.ledger.export import pivot_lines, write_atomically
from steering_pts.ledger.records import (
    CompletionRecord,
    ConfirmationRecord,
    LedgerSummary,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.ledger.tables import (
    COMPLETIONS,
    CONFIRMATIONS,
    NOMINEES,
    PIVOTS,
    PROBLEMS,
    ROLLOUTS,
    SCORES,
    SETTINGS,
    Row,
    Table,
    Value,
    encode_key,
)
from steering_pts.oracles.base import Verdict

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]
Record = TypeVar("Record")


class LedgerReader(Closing):
    """What a ledger holds; every method raises LedgerError where the file can't be read.

    Used from the thread that opened it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Wraps an open connection; `Ledger.read` and `Ledger.open` make these."""
        self.path = path
        self._connection = connection

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._connection.close()

    def settings(self) -> dict[str, JSON]:
        """The settings that the run was begun with."""
        return {key: json.loads(text) for key, text in self._select(SETTINGS)}

    def problems(self) -> list[Problem]:
        """All problems, in the order in which they were added."""
        return self._select(PROBLEMS)

    def completion(self, completion_id: str) -> CompletionRecord | None:
        """One completion; None where there is none of that id."""
        return next(iter(self._select(COMPLETIONS, id=completion_id)), None)

    def completions(self, problem_id: str | None = None) -> list[CompletionRecord]:
        """All completions, or a problem's, by problem and index."""
        return self._select(COMPLETIONS, problem_id=problem_id)

    def score(self, completion_id: str) -> ScoreRecord | None:
        """A completion's score; None where it has none yet."""
        return next(iter(self._select(SCORES, completion_id=completion_id)), None)

    def scores(self) -> list[ScoreRecord]:
        """All scores, by completion."""
        return self._select(SCORES)

    def rollouts_for(self, completion_id: str, stage: str | None = None) -> list[RolloutRecord]:
        """A completion's rollouts, all or a stage's, by key."""
        return self._select(ROLLOUTS, completion_id=completion_id, stage=stage)

    def find_rollouts(self, keys: Iterable[RolloutKey]) -> dict[RolloutKey, RolloutRecord]:
        """Those of the rollouts asked for that are there, in the order asked for."""
        query = ROLLOUTS.select(ROLLOUTS.keys)
        found = (row for key in keys for row in self._rows(query, encode_key(key)))
        records = (self._decoded(ROLLOUTS, row) for row in found)
        return {record.key: record for record in records}

    def explored_positions(self, completion_id: str) -> set[int]:
        """Where the alternatives of a completion's candidates have been drawn."""
        query = (
            f"SELECT DISTINCT position FROM {ROLLOUTS.name} WHERE completion_id = ? AND arm = 'alternative'"  # noqa: S608  # our own names
        )
        positions = {position for (position,) in self._rows(query, (completion_id,))}
        if odd := [position for position in positions if not isinstance(position, int)]:
            raise self._damaged("a rollout", f"position is {odd[0]!r:.40}")
        return positions

    def nominees(self, completion_id: str | None = None) -> list[NomineeRecord]:
        """All nominees, or a completion's, by completion and position."""
        return self._select(NOMINEES, completion_id=completion_id)

    def confirmations(self, completion_id: str | None = None) -> list[ConfirmationRecord]:
        """All confirmations, or a completion's, by completion and position."""
        return self._select(CONFIRMATIONS, completion_id=completion_id)

    def pivots(self) -> list[PivotRecord]:
        """All pivots, by completion and position."""
        return self._select(PIVOTS)

    def summary(self) -> LedgerSummary:
        """Counts and token totals of everything recorded so far."""
        with self._snapshot():
            return LedgerSummary(
                problems=self._count("problems"),
                completions=self._count_verdicts("completions"),
                scored=self._count("scores"),
                rollouts=self._count_verdicts("rollouts"),
                stages=self._count_by("rollouts", "stage"),
                nominees=self._count("nominees"),
                unaffordable=self._number("SELECT COUNT(*) FROM nominees WHERE alternative = 0"),
                confirmations=self._count("confirmations"),
                pivots=self._count("pivots"),
                completion_tokens=self._number("SELECT COALESCE(SUM(LENGTH(ids)), 0) / 4 FROM completions"),
                rollout_tokens=self._number("SELECT COALESCE(SUM(tokens), 0) FROM rollouts"),
                oracle_failures=self._number(
                    "SELECT (SELECT COALESCE(SUM(failed), 0) FROM completions)"
                    " + (SELECT COALESCE(SUM(failed), 0) FROM rollouts)"
                ),
            )

    def export_pivots_jsonl(self, path: Path, decode: Callable[[Sequence[int]], str]) -> None:
        """Writes every pivot as a line of JSON: all at once, and the same bytes for the same pivots.

        Args:
            path: the file; it is replaced only when all of it is written.
            decode: token ids to text, for people to read.

        Raises:
            LedgerError: the file can't be written.
        """
        with self._snapshot():
            problems = {problem.id: problem for problem in self.problems()}
            completions = {record.id: record for record in self.completions()}
            confirmations = {(r.completion_id, r.position): r for r in self.confirmations()}
            pivots = self.pivots()
        for pivot in pivots:
            if pivot.problem_id not in problems or pivot.completion_id not in completions:
                raise self._damaged(f"pivot {pivot.completion_id!r:.80}", "it is of nothing that is there")
        write_atomically(path, pivot_lines(pivots, problems, completions, confirmations, decode))

    def _select(self, table: Table[Record], **where: Value) -> list[Record]:
        """A table's records where the columns that are not None have these values."""
        given = {column: value for column, value in where.items() if value is not None}
        rows = self._rows(table.select(tuple(given)), tuple(given.values()))
        return [self._decoded(table, row) for row in rows]

    def _decoded(self, table: Table[Record], row: Row) -> Record:
        try:
            return table.read(row)
        except ValueError as error:
            raise self._damaged(f"{table.noun} {row[0]!r:.80}", error) from error

    def _damaged(self, what: str, why: object) -> LedgerError:
        return LedgerError(f"{self.path}: {what} can't be read ({on_one_line(why)}); {DAMAGED}")

    def stream(self, table: Table[Record]) -> Iterator[Record]:
        """All records of a table as it is now, one by one: a table that is larger than the memory can be read."""
        with self._translated():
            for row in self._connection.execute(table.select()):
                yield self._decoded(table, row)

    def _count(self, table: str) -> int:
        return self._number(f"SELECT COUNT(*) FROM {table}")  # noqa: S608  # our own names

    def _count_verdicts(self, table: str) -> dict[Verdict, int]:
        counts = self._count_by(table, "verdict")
        try:
            return dict.fromkeys(Verdict, 0) | {Verdict(name): count for name, count in counts.items()}
        except ValueError as error:
            raise self._damaged(f"a verdict among the {table}", error) from error

    def _count_by(self, table: str, column: str) -> dict[str, int]:
        query = f"SELECT {column}, COUNT(*) FROM {table} GROUP BY {column} ORDER BY {column}"  # noqa: S608  # our own names
        rows = self._rows(query)
        if odd := [value for value, _ in rows if not isinstance(value, str)]:
            raise self._damaged(f"{column} among the {table}", f"{odd[0]!r:.40} is no text")
        return dict(rows)

    def _number(self, query: str) -> int:
        ((number,),) = self._rows(query)
        if not isinstance(number, int):  # a sum with anything else in it is no integer
            raise self._damaged("a count", f"{number!r:.40} is no integer")
        return number

    def _rows(self, query: str, parameters: Sequence[Value] = ()) -> list[Row]:
        with self._translated():
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All reads inside see the ledger at one moment, whatever its writer does meanwhile."""
        with self._translated():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with self._translated():
                self._connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns what SQLite raises (a full disk, a damaged file) into LedgerError."""
        try:
            yield
        except ERRORS as error:
            raise LedgerError(f"{self.path}: {explained(error)}") from error
