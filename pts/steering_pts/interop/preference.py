"""Pairs for direct preference optimisation (Rafailov et al., arXiv 2305.18290): as text, and as the exact ids."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from steering_pts.errors import LedgerError
from steering_pts.export.columns import RowTable, columns_of, rows_of
from steering_pts.ledger import LedgerReader

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class PivotalPair:
    """A pivot's decision as a preference: after the same prompt and prefix, the better and the worse continuation.

    Attributes:
        prompt_ids: Prompt and completion up to the decision.
        chosen_ids: The better token (or sentence).
        rejected_ids: The worse one.
        problem_id: The problem whose completion took the decision.
        delta: Effect of the token that was taken on P(success): negative where that is the rejected one.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    problem_id: str
    delta: float


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A row that TRL reads: text columns for every trainer, id columns for `PairTrainer`."""

    prompt: str
    chosen: str
    rejected: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    problem_id: str
    delta: float


def pivotal_pairs(ledger: LedgerReader) -> Generator[PivotalPair]:
    """The pivots of a run as pairs, by completion and position.

    Raises:
        LedgerError: The ledger can't be read.
    """
    for pivot in ledger.pivots():
        completion = ledger.completion(pivot.completion_id)
        if completion is None:
            raise LedgerError(
                f"{ledger.path}: completion {pivot.completion_id} has a pivot, but is not there"
            )
        yield PivotalPair(
            prompt_ids=(*completion.prompt_ids, *completion.ids[: pivot.position]),
            chosen_ids=pivot.chosen_ids,
            rejected_ids=pivot.rejected_ids,
            problem_id=pivot.problem_id,
            delta=pivot.delta,
        )


def preference_table(pairs: Iterable[PivotalPair], decode: Decode) -> RowTable:
    """Pairs as a table; the texts are decoded from the ids, and only the ids are exact."""
    rows = (
        PreferenceRow(
            decode(pair.prompt_ids),
            decode(pair.chosen_ids),
            decode(pair.rejected_ids),
            pair.prompt_ids,
            pair.chosen_ids,
            pair.rejected_ids,
            pair.problem_id,
            pair.delta,
        )
        for pair in pairs
    )
    return RowTable(columns_of(PreferenceRow), rows_of(rows))
