"""Errors of pivotal token search.

    PtsError
    ├── DataError                  a data set that can't be used; `.problems` lists every bad row
    │   └── InteropError           a file of another tool that can't be used, or made
    ├── OracleError                no oracle fits, an unknown oracle, or settings it can't use
    ├── LedgerError                a run's file that can't be opened, read or written
    │   ├── LedgerLockedError      another process is writing to it; `.process` is its id
    │   └── LedgerSettingsError    it belongs to a run with other settings; `.differences` names them
    ├── SearchError                a search that can't be run as asked
    ├── EndpointError              a server that can't take part in a run, or none is left that can
    ├── RecordingError             states or vectors of a run that can't be recorded, written or read
    ├── MethodError                pivots of which a method makes no vector
    ├── ReportError                a file of results that can't be read; `.problems` lists what is wrong
    ├── InspectionError            a vector file that is not there, or no model to look at it with
    ├── EvaluationError            an evaluation that can't be made as asked
    └── VectorsError               a folder of vector files that can't be used

Messages say what was wrong, where, and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

MAX_SHOWN_PROBLEMS: Final = 20


class PtsError(Exception):
    """Base of all errors of pivotal token search."""


class DataError(PtsError):
    """A data set that can't be used.

    `problems` holds one sentence for every bad row, with its line number; the message shows the
    first 20 and says how many more there are.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        shown = self.problems[:MAX_SHOWN_PROBLEMS]
        more = len(self.problems) - len(shown)
        lines = [*shown, f"and {more} more"] if more else [*shown]
        separator = "\n  " if len(lines) > 1 else " "
        super().__init__(f"{source}:{separator}" + "\n  ".join(lines))


class InteropError(DataError):
    """A file of another tool that can't be used, or one that can't be made for it; `.problems` lists why."""


class OracleError(PtsError):
    """No oracle fits the data, the oracle is unknown, or its settings can't be used."""


class LedgerError(PtsError):
    """A ledger that can't be opened, read or written; the message says which and why."""


class LedgerLockedError(LedgerError):
    """Another process is writing to the ledger; `process` is its id, None where it can't be told."""

    def __init__(self, path: Path, process: int | None) -> None:
        self.path = path
        self.process = process
        super().__init__(f"{path} is in use by " + (f"process {process}" if process else "another process"))


class LedgerSettingsError(LedgerError):
    """The ledger belongs to a run with other settings.

    `differences` holds one sentence for each setting that differs, with both values.
    """

    def __init__(self, path: Path, differences: Sequence[str]) -> None:
        self.path = path
        self.differences = tuple(differences)
        super().__init__(
            f"{path} was begun with other settings: "
            + "; ".join(self.differences)
            + ". Use the same settings to continue it, or another file for a new run."
        )


class SearchError(PtsError):
    """A search that can't be run as asked; the message says what was wrong."""


class EvaluationError(PtsError):
    """An evaluation that can't be made as asked; the message says everything that is wrong."""


class VectorsError(PtsError):
    """A folder of vector files, or what a command keeps beside it, can't be used; the message says why."""


class EndpointError(PtsError):
    """A server that can't take part in a run, or none is left that can; the message names it and says why."""


class RecordingError(PtsError):
    """States that can't be recorded, or a file of a run's vectors that can't be written or read."""


class MethodError(PtsError):
    """Pivots of which a method makes no vector; the message says what it needs and what there is."""


class ReportError(PtsError):
    """A file of results that can't be read; `problems` holds one sentence for everything that is wrong with it."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        shown = "; ".join(self.problems[:MAX_SHOWN_PROBLEMS])
        more = len(self.problems) - MAX_SHOWN_PROBLEMS
        super().__init__(f"{path}: {shown}" + (f"; and {more} more" if more > 0 else ""))


class InspectionError(PtsError):
    """A vector file that is not there, or a model that it can't be looked at with; the message says which and why."""
