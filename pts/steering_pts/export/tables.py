"""The tables of a run, read from its ledger row by row, also while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Final, TypeVar

from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.export.columns import Column, Row, RowTable, columns_of, optional, row_of, rows_of
from steering_pts.ledger import (
    CompletionRecord,
    ConfirmationRecord,
    LedgerReader,
    NomineeRecord,
    PivotRecord,
    RolloutRecord,
)
from steering_pts.ledger.tables import COMPLETIONS, PIVOTS, PROBLEMS, ROLLOUTS, SCORES, Table
from steering_pts.search import candidates as candidate_positions

Record = TypeVar("Record")
_PLACE: Final = ("completion_id", "position")
_CONFIRMATION: Final = "confirmation_"


def pivots(ledger: LedgerReader) -> RowTable:
    """The pivots, each with its effect, its interval and its alternatives."""
    return _whole(ledger, PIVOTS, PivotRecord)


def completions(ledger: LedgerReader) -> RowTable:
    """The sampled completions with their verdicts."""
    return _whole(ledger, COMPLETIONS, CompletionRecord)


def rollouts(ledger: LedgerReader) -> RowTable:
    """Every rollout with its verdict."""
    return _whole(ledger, ROLLOUTS, RolloutRecord)


def problems(ledger: LedgerReader) -> RowTable:
    """The problems; as a data set of its own, it has the same problem ids."""
    return _whole(ledger, PROBLEMS, Problem)


def candidates(ledger: LedgerReader) -> RowTable:
    """The tokens that the screen left, with what became of each.

    Of a run over sentences, those that alternatives have been drawn to, which exploration begins with as far as its
    budget reaches: where sentences begin, only the tokenizer tells.

    The columns of a nominee are empty where a candidate was not nominated, those of its
    confirmation (`confirmation_…`) where it has not been confirmed.
    """
    nominee = [column for column in columns_of(NomineeRecord) if column.name not in _PLACE]
    confirmation = [column for column in columns_of(ConfirmationRecord) if column.name not in _PLACE]
    columns = (
        *(Column("completion_id", str), Column("problem_id", str), Column("position", int)),
        *(Column("token_id", int), Column("probability", float)),
        *optional(nominee),
        *optional(confirmation, _CONFIRMATION),
    )
    return RowTable(columns, _candidate_rows(ledger, columns))


TABLES: Final[Mapping[str, Callable[[LedgerReader], RowTable]]] = {
    table.__name__: table for table in (pivots, candidates, completions, rollouts, problems)
}


def _whole(ledger: LedgerReader, table: Table[Record], record: type) -> RowTable:
    return RowTable(columns_of(record), rows_of(ledger.stream(table)))


def _candidate_rows(ledger: LedgerReader, columns: tuple[Column, ...]) -> Generator[Row]:
    tau = ledger.settings().get("search.tau")
    if not isinstance(tau, float):
        raise LedgerError(f"{ledger.path}: setting 'search.tau' is {tau!r}; expected a number")
    in_tokens = ledger.settings().get("search.unit") != "sentence"
    empty: Row = {column.name: None for column in columns}
    # While the scores are being read, SQLite shows this connection the ledger as it was when that began.
    for score in ledger.stream(SCORES):
        completion = ledger.completion(score.completion_id)
        if completion is None:
            raise LedgerError(
                f"{ledger.path}: completion {score.completion_id} has a score, but is not there"
            )
        found: dict[int, Row] = {}
        for nominee in ledger.nominees(completion.id):
            found[nominee.position] = row_of(nominee)
        for confirmation in ledger.confirmations(completion.id):
            row = {
                f"{_CONFIRMATION}{name}": cell
                for name, cell in row_of(confirmation).items()
                if name not in _PLACE
            }
            found[confirmation.position] = found.get(confirmation.position, {}) | row
        screened = (
            candidate_positions(score.probabilities, tau)
            if in_tokens
            else ledger.explored_positions(completion.id)
        )
        positions = sorted({*screened, *found})
        if len(score.probabilities) != len(completion.ids) or positions[-1:] >= [len(completion.ids)]:
            raise LedgerError(f"{ledger.path}: the rows of completion {completion.id} do not fit its tokens")
        for position in positions:
            yield (
                empty
                | found.get(position, {})
                | {
                    "completion_id": completion.id,
                    "problem_id": completion.problem_id,
                    "position": position,
                    "token_id": completion.ids[position],
                    "probability": score.probabilities[position],
                }
            )
