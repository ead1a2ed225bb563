"""From the rows of a data set to the problems that are used."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Final

from steering_pts.data.layouts import Columns, find_columns
from steering_pts.data.options import DataOptions
from steering_pts.data.problem import Problem
from steering_pts.data.rows import Row, Rows, Values
from steering_pts.data.source import open_rows
from steering_pts.data.values import RowError
from steering_pts.errors import DataError
from steering_pts.seeds import derive_seed

# Rows whose columns and contents decide the layout; fewer where each has to be fetched.
HEAD_ROWS: Final = 1000
FETCHED_HEAD_ROWS: Final = 100
_logger = logging.getLogger(__name__)


def load_problems(source: str | Path, options: DataOptions | None = None) -> list[Problem]:
    """Reads the problems of a data set; nothing is returned unless all rows are sound.

    Rows are read once, and only problems that are used are kept in memory. Conditions choose among
    the rows, ids among the problems, then comes the shuffle, then the limit. Rows that a condition
    leaves out need not be sound; rows behind the limit are checked none the less, except those of
    the Hub, where a limit without a shuffle fetches no more rows than it takes.

    Args:
        source: a file (JSON lines, a JSON list, CSV, Parquet; text may be compressed with gzip); a
            folder that `datasets` has saved or can load; `demo:train`, `demo:validation` or
            `demo:test`; or a data set of the Hugging Face Hub, `owner/name` or `owner/name:config`
            (`hf:` before it says so where a file has that name too).
        options: how to read it, and what of it; the defaults of `DataOptions` if None.

    Raises:
        DataError: the source can't be read, has no rows, lacks the columns, or has bad rows:
            malformed, a field that is missing, empty or not what the layout says, text that is not
            UTF-8, or a row that repeats another. Or no row satisfies the conditions, they are on a
            field that no row has, or ids are not there. `.problems` lists all bad rows.
    """
    options = options or DataOptions()
    name = str(source)
    # Only the first rows will do where nothing after them can matter.
    needs_all = options.shuffle_seed is not None or options.ids is not None
    rows = open_rows(name, options.format, options.split, None if needs_all else options.limit)
    with closing(rows.rows):
        reading = _Reading(name, rows, options)
        problems = _chosen(reading.problems(), options, may_stop=rows.may_stop)
    reading.report(problems)
    return problems


def _chosen(problems: Iterator[Problem], options: DataOptions, *, may_stop: bool) -> list[Problem]:
    """Those within the limit, by order of the rows or of the shuffle; what is left over is read none the less."""
    if (seed := options.shuffle_seed) is not None:

        def place(problem: Problem) -> tuple[int, str]:
            return derive_seed(seed, problem.id), problem.id

        if options.limit is None:
            return sorted(problems, key=place)
        return heapq.nsmallest(options.limit, problems, key=place)
    chosen = list(islice(problems, options.limit))
    if not may_stop:
        for _ in problems:
            pass
    return chosen


class _Reading:
    """One pass over the rows of a source, and what was found on the way."""

    def __init__(self, source: str, rows: Rows, options: DataOptions) -> None:
        self._source = source
        self._rows = rows
        self._options = options
        self._faults: list[str] = []
        self._first: dict[str, int] = {}  # id -> number of the row that has it
        self._seen_ids: set[str] = set()  # of those asked for, whether or not the conditions leave them
        self._columns_seen: dict[str, None] = {}  # in order of appearance
        self._count = 0

    def problems(self) -> Iterator[Problem]:
        """The problems that conditions and ids leave, in the order of the rows."""
        rows = self._rows.rows
        head_rows = FETCHED_HEAD_ROWS if self._rows.may_stop else HEAD_ROWS
        head: list[Row] = []
        sound: list[Values] = []
        for row in rows:
            head.append(row)
            if row.fault is None:
                sound.append(row.values)
            if len(sound) == head_rows:
                break
        columns = self._find_columns(sound) if sound else None
        if sound and self._rows.is_uniform:
            self._check_conditions(sound[0])
        for row in chain(head, rows):
            self._count += 1
            self._columns_seen.update(dict.fromkeys(row.values))
            if columns is None or row.fault is not None:
                self._fail(row, row.fault or "")
            elif (problem := self._problem_of(row, columns)) is not None:
                yield problem

    def report(self, problems: list[Problem]) -> None:
        """Raises what is wrong with the source, or warns of rows that were skipped.

        Raises:
            DataError: see `load_problems`.
        """
        where, ids = self._options.where, self._options.ids
        if not self._count:
            raise DataError(self._source, [f"it is empty; {self._rows.wanted}"])
        if self._columns_seen:
            self._check_conditions(self._columns_seen)
        if self._faults and not (self._options.skip_bad_rows and self._first):
            raise DataError(self._source, self._faults)
        if ids is not None and (missing := sorted(ids - self._seen_ids)):
            raise DataError(self._source, [f"no problem has the id {one}" for one in missing])
        if not problems:
            conditions = " and ".join(map(str, where)) + (" among those ids" if ids is not None else "")
            raise DataError(self._source, [f"none of its {self._count} rows satisfies {conditions}"])
        if self._faults:
            skipped = DataError(f"{self._source}: skipped {len(self._faults)} bad rows", self._faults)
            _logger.warning("%s", skipped)

    def _find_columns(self, rows: list[Values]) -> Columns:
        options = self._options
        try:
            return find_columns(rows, options.layout, options.question_field, options.answer_field)
        except ValueError as error:
            hint = f" ({self._rows.header})" if self._rows.header else ""
            raise DataError(self._source, [f"{error}{hint}"]) from None

    def _check_conditions(self, columns: Iterable[str]) -> None:
        present = [*columns]
        if unknown := [c for c in self._options.where if c.field not in present]:
            fields = ", ".join(present)
            raise DataError(
                self._source, [f"no field {c.field!r} for --where {c}; one of: {fields}" for c in unknown]
            )

    def _problem_of(self, row: Row, columns: Columns) -> Problem | None:
        """The problem of a row; None where it is bad, or not among those asked for."""
        ids = self._options.ids
        is_wanted = all(condition.holds(row.values) for condition in self._options.where)
        if not is_wanted and ids is None:
            return None
        try:
            problem = columns.problem_of(row.values)
        except RowError as fault:
            if is_wanted:
                self._fail(row, str(fault))
            return None
        if ids is not None:
            self._seen_ids.add(problem.id)
        if not is_wanted:
            return None
        first = self._first.setdefault(problem.id, row.number)
        if first != row.number:
            self._fail(row, f"repeats {self._rows.noun} {first}")
            return None
        return problem if ids is None or problem.id in ids else None

    def _fail(self, row: Row, fault: str) -> None:
        self._faults.append(f"{self._rows.noun} {row.number}: {fault}")
