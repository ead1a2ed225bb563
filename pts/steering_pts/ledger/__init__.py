"""A run's ledger: everything that a search drew, judged and concluded, in one SQLite file."""

from steering_pts.ledger.ledger import Ledger
from steering_pts.ledger.reader import JSON, LedgerReader
from steering_pts.ledger.records import (
    ARMS,
    AlternativeCount,
    Arm,
    CompletionRecord,
    ConfirmationRecord,
    LedgerSummary,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)

__all__ = [
    "ARMS",
    "JSON",
    "AlternativeCount",
    "Arm",
    "CompletionRecord",
    "ConfirmationRecord",
    "Ledger",
    "LedgerReader",
    "LedgerSummary",
    "NomineeRecord",
    "PivotRecord",
    "RolloutKey",
    "RolloutRecord",
    "ScoreRecord",
]
