"""From confirmations to pivots: the correction over all nominees of a run, and the pair of each pivot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import (
    AlternativeCount,
    CompletionRecord,
    ConfirmationRecord,
    PivotRecord,
    RolloutRecord,
)
from steering_pts.oracles.base import Verdict
from steering_pts.search import Trace
from steering_pts.sentences import Decode, first_sentence, sentence_spans
from steering_pts.statistics import benjamini_hochberg


class Unit(Protocol):
    """What can be pivotal."""

    def spans(self, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The units of a completion; empty means every token."""
        ...

    def first(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of the first unit of a text."""
        ...


class TokenUnit:
    """Every token."""

    def spans(self, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """See `Unit.spans`."""
        del ids
        return ()

    def first(self, ids: Sequence[int]) -> tuple[int, ...]:
        """See `Unit.first`."""
        return tuple(ids[:1])


class SentenceUnit:
    """Every sentence; an alternative is another sentence in its place."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def spans(self, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """See `Unit.spans`."""
        return sentence_spans(ids, self._decode)

    def first(self, ids: Sequence[int]) -> tuple[int, ...]:
        """See `Unit.first`."""
        return first_sentence(ids, self._decode)


def divergence(record: RolloutRecord, completion_ids: Sequence[int]) -> int | None:
    """Position of the first token of a rollout that is not the completion's, None when it follows it to the end."""
    return first_difference(record.ids, completion_ids, record.key.position)


def first_difference(ids: Sequence[int], completion_ids: Sequence[int], start: int = 0) -> int | None:
    """Position of the first of `ids`, which begin at `start`, that is not the completion's; None without one."""
    for offset, (ours, theirs) in enumerate(zip(ids, completion_ids[start:], strict=False)):
        if ours != theirs:
            return start + offset
    return None


def repeated_lengths(completions: Iterable[CompletionRecord]) -> dict[str, int]:
    """How many of its first ids a completion has in common with an earlier one of its problem, at most; by its id."""
    earlier: dict[str, list[tuple[int, ...]]] = {}
    lengths = {}
    for completion in completions:
        others = earlier.setdefault(completion.problem_id, [])
        lengths[completion.id] = max((_common(completion.ids, other) for other in others), default=0)
        others.append(completion.ids)
    return lengths


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    left_at = first_difference(ids, others)
    return min(len(ids), len(others)) if left_at is None else left_at


def select_pivots(ledger: Ledger, fdr: float, unit: Unit) -> list[PivotRecord]:
    """The pivots of a run: nominees whose confirmation stands after Benjamini-Hochberg at level `fdr`.

    Effect and interval rest on the confirmation's rollouts alone; which alternative is the better or the worse one,
    on all rollouts.
    """
    confirmations = sorted(ledger.confirmations(), key=lambda c: (c.completion_id, c.position))
    if not confirmations:
        return []
    rejected, q_values = benjamini_hochberg([c.p_value for c in confirmations], fdr)
    return [
        _pivot(ledger, confirmation, float(q_value), unit)
        for confirmation, q_value, is_pivot in zip(confirmations, q_values, rejected, strict=True)
        if is_pivot
    ]


def _pivot(ledger: Ledger, confirmation: ConfirmationRecord, q_value: float, unit: Unit) -> PivotRecord:
    completion = ledger.completion(confirmation.completion_id)
    score = ledger.score(confirmation.completion_id)
    if completion is None or score is None:
        raise LedgerError(
            f"{ledger.path}: completion {confirmation.completion_id} was confirmed but is not there"
        )
    position = confirmation.position
    spans = unit.spans(completion.ids)
    end = Trace(completion.id, score.probabilities, succeeded=True, spans=spans).end_of[position]
    own = completion.ids[position:end]
    others = [
        (rollout.ids[position - rollout.key.position :], rollout.verdict)
        for rollout in ledger.rollouts_for(completion.id)
        if (left_at := divergence(rollout, completion.ids)) is not None and position <= left_at < end
    ]
    alternatives = count_alternatives((unit.first(ids), verdict) for ids, verdict in others)
    is_positive = confirmation.delta > 0
    other = best_alternative(alternatives, worst=is_positive).ids
    return PivotRecord(
        completion_id=completion.id,
        problem_id=completion.problem_id,
        position=position,
        ids=own,
        probability=math.prod(score.probabilities[position:end]),
        delta=confirmation.delta,
        low=confirmation.low,
        high=confirmation.high,
        p_value=confirmation.p_value,
        q_value=q_value,
        chosen_ids=own if is_positive else other,
        rejected_ids=other if is_positive else own,
        alternatives=alternatives,
    )


def count_alternatives(taken: Iterable[tuple[tuple[int, ...], Verdict]]) -> tuple[AlternativeCount, ...]:
    """Successes and failures by what was taken in a pivot's place, the most frequent first."""
    successes: Counter[tuple[int, ...]] = Counter()
    failures: Counter[tuple[int, ...]] = Counter()
    for ids, verdict in taken:
        if verdict is Verdict.CORRECT:
            successes[ids] += 1
        elif verdict is Verdict.INCORRECT:
            failures[ids] += 1
    counts = [
        AlternativeCount(ids, successes[ids], failures[ids]) for ids in successes.keys() | failures.keys()
    ]
    return tuple(sorted(counts, key=lambda c: (-(c.successes + c.failures), c.ids)))


def best_alternative(alternatives: Sequence[AlternativeCount], *, worst: bool) -> AlternativeCount:
    """The alternative with the highest (or lowest) success rate among those that are really taken.

    Rates are shrunk towards one half by two pseudo-rollouts. Alternatives with less than a tenth of the rollouts are
    left out: what the sampler hardly ever draws is no decision.
    """
    total = sum(count.successes + count.failures for count in alternatives)
    common = [count for count in alternatives if 10 * (count.successes + count.failures) >= total]

    def rate(count: AlternativeCount) -> float:
        return (count.successes + 1) / (count.successes + count.failures + 2)

    # Of many rare alternatives none reaches a tenth; then all take part.
    return (min if worst else max)(common or alternatives, key=lambda c: (rate(c), c.ids))
