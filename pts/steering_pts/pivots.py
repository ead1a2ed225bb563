"""From confirmations to pivots: the correction over all nominees of a run, and the pair of tokens of each pivot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import AlternativeCount, ConfirmationRecord, PivotRecord, RolloutRecord
from steering_pts.oracles.base import Verdict
from steering_pts.statistics import benjamini_hochberg


def select_pivots(ledger: Ledger, fdr: float) -> list[PivotRecord]:
    """The pivots of a run: nominees whose confirmation stands after Benjamini-Hochberg at level `fdr`.

    Effect and interval rest on the confirmation's rollouts alone; which alternative is the better or the worse one,
    on all rollouts.
    """
    confirmations = sorted(ledger.confirmations(), key=lambda c: (c.completion_id, c.position))
    if not confirmations:
        return []
    rejected, q_values = benjamini_hochberg([c.p_value for c in confirmations], fdr)
    return [
        _pivot(ledger, confirmation, float(q_value))
        for confirmation, q_value, is_pivot in zip(confirmations, q_values, rejected, strict=True)
        if is_pivot
    ]


def _pivot(ledger: Ledger, confirmation: ConfirmationRecord, q_value: float) -> PivotRecord:
    completion = ledger.completion(confirmation.completion_id)
    score = ledger.score(confirmation.completion_id)
    if completion is None or score is None:
        raise LedgerError(
            f"{ledger.path}: completion {confirmation.completion_id} was confirmed but is not there"
        )
    token_id = completion.ids[confirmation.position]
    rollouts = [
        rollout
        for rollout in ledger.rollouts_for(completion.id)
        if rollout.key.position == confirmation.position and rollout.key.arm == "alternative"
    ]
    alternatives = count_alternatives(rollouts)
    is_positive = confirmation.delta > 0
    other = best_alternative(alternatives, worst=is_positive)
    return PivotRecord(
        completion_id=completion.id,
        problem_id=completion.problem_id,
        position=confirmation.position,
        token_id=token_id,
        probability=score.probabilities[confirmation.position],
        delta=confirmation.delta,
        low=confirmation.low,
        high=confirmation.high,
        p_value=confirmation.p_value,
        q_value=q_value,
        chosen_id=token_id if is_positive else other.token_id,
        rejected_id=other.token_id if is_positive else token_id,
        alternatives=alternatives,
    )


def count_alternatives(rollouts: Sequence[RolloutRecord]) -> tuple[AlternativeCount, ...]:
    """Successes and failures by the first token of alternative rollouts, the most frequent first."""
    successes: Counter[int] = Counter()
    failures: Counter[int] = Counter()
    for rollout in rollouts:
        if rollout.verdict is Verdict.CORRECT:
            successes[rollout.ids[0]] += 1
        elif rollout.verdict is Verdict.INCORRECT:
            failures[rollout.ids[0]] += 1
    counts = [AlternativeCount(i, successes[i], failures[i]) for i in successes.keys() | failures.keys()]
    return tuple(sorted(counts, key=lambda c: (-(c.successes + c.failures), c.token_id)))


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
    return (min if worst else max)(common or alternatives, key=lambda c: (rate(c), c.token_id))
