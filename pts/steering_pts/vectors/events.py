"""Pivot events: the decisions from which vectors are made, and groups of alike ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.records import PivotRecord

_MOST_CONTEXT_IDS = 1 << 18  # of a vector file


@dataclass(frozen=True, slots=True)
class PivotEvent:
    """One decision: the better and the worse token at the step after a prefix.

    Attributes:
        prefix_ids: Prompt and completion before the decision; the pivot is steered at the row of the last id.
        chosen_id: The better token.
        rejected_id: The worse token.
        effect: Of the token that was generated there, on P(success): above 0 where that was the better one.
        problem_id: The problem, by which held-out parts are taken; events of one problem are never on both sides.
        completion_id: The completion.
        position: Index of the generated token, and so the step.
    """

    prefix_ids: tuple[int, ...]
    chosen_id: int
    rejected_id: int
    effect: float
    problem_id: str = ""
    completion_id: str = ""
    position: int = 0

    @property
    def weight(self) -> float:
        """|effect|: how much the decision matters, and so how much it counts."""
        return abs(self.effect)

    @property
    def context(self) -> tuple[int, ...]:
        """The last ids before the decision, as they are recorded in a vector file."""
        return self.prefix_ids[-MAX_CONTEXT_TOKENS:]


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Alike decisions that one vector serves.

    Attributes:
        events: The decisions.
        min_match: With how many of its last ids a context has to agree to be one of theirs; 0 where contexts can't
            tell where to act, and the vector's file has none.
    """

    events: tuple[PivotEvent, ...]
    min_match: int

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """The distinct contexts by which the vector knows where to act, in order; none without a `min_match`.

        Of very many the older ids are left off, as many as the file has no room for.
        """
        if not self.min_match:
            return ()
        longest = max(self.min_match, _MOST_CONTEXT_IDS // len(self.events))
        own = {event.context[-longest:] for event in self.events if len(event.context) >= self.min_match}
        return tuple(sorted(own))


def events_of_run(ledger: LedgerReader) -> list[PivotEvent]:
    """The pivots of a run as events, in the order of the ledger."""
    return [_event(ledger, pivot) for pivot in ledger.pivots()]


def _event(ledger: LedgerReader, pivot: PivotRecord) -> PivotEvent:
    completion = ledger.completion(pivot.completion_id)
    assert completion is not None  # noqa: S101 -- the ledger's foreign keys hold this
    return PivotEvent(
        prefix_ids=(*completion.prompt_ids, *completion.ids[: pivot.position]),
        chosen_id=pivot.chosen_id,
        rejected_id=pivot.rejected_id,
        effect=pivot.delta,
        problem_id=pivot.problem_id,
        completion_id=pivot.completion_id,
        position=pivot.position,
    )


def shared_suffix(contexts: Sequence[Sequence[int]]) -> int:
    """How many ids all contexts have in common at their end."""
    length = 0
    for ids in zip(*(reversed(context) for context in contexts), strict=False):
        if len(set(ids)) > 1:
            break
        length += 1
    return length


def problem_halves(events: Sequence[PivotEvent]) -> tuple[list[int], list[int]] | None:
    """Indices of two halves of the events, as equal as they can be, of which no problem is in both.

    Problems go, the largest first, to the half that is smaller so far; the order of equals is that of the events.
    None where all events are of one problem.
    """
    of_problem: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        of_problem.setdefault(event.problem_id, []).append(index)
    if len(of_problem) < 2:
        return None
    halves: tuple[list[int], list[int]] = ([], [])
    for indices in sorted(of_problem.values(), key=len, reverse=True):
        min(halves, key=len).extend(indices)
    return sorted(halves[0]), sorted(halves[1])


def problem_folds(problem_ids: Sequence[str], most: int = 5) -> list[int]:
    """A fold number for every item, such that all items of a problem are in one fold; as equal as they can be.

    Args:
        problem_ids: The problem of each item.
        most: Folds at most; there are fewer when there are fewer problems.
    """
    counts: dict[str, int] = {}
    for problem_id in problem_ids:
        counts[problem_id] = counts.get(problem_id, 0) + 1
    sizes = [0] * max(1, min(most, len(counts)))
    fold_of: dict[str, int] = {}
    for problem_id in sorted(counts, key=lambda one: -counts[one]):
        fold_of[problem_id] = sizes.index(min(sizes))
        sizes[fold_of[problem_id]] += counts[problem_id]
    return [fold_of[problem_id] for problem_id in problem_ids]
