"""A pivot with what the rows of codelion's data sets need of it."""

from __future__ import annotations

from typing import NamedTuple

from steering_pts.data import Problem
from steering_pts.interop.codelion.layout import Evidence
from steering_pts.interop.told_rates import NOTHING_TOLD, ToldRates, rates_of
from steering_pts.ledger import CompletionRecord, ConfirmationRecord, PivotRecord
from steering_pts.oracles.base import Verdict


class Found(NamedTuple):
    """The pivot.

    Attributes:
        pivot: What the ledger has of it.
        problem: The problem that it is of.
        context_ids: Prompt and completion before it.
        other_ids: What stood in its place: the other one of the pair.
        before: P(success) before it; None where neither we nor the file that it came from knows.
        after: After it.
        evidence: What of ours goes with it.
        told: What a foreign file tells of it.
    """

    pivot: PivotRecord
    problem: Problem
    context_ids: tuple[int, ...]
    other_ids: tuple[int, ...]
    before: float | None
    after: float | None
    evidence: Evidence
    told: ToldRates

    @classmethod
    def of(
        cls,
        pivot: PivotRecord,
        completion: CompletionRecord,
        problem: Problem,
        confirmation: ConfirmationRecord | None,
    ) -> Found:
        """A pivot of a completion; `confirmation` is None where it was imported."""
        prefix = completion.ids[: pivot.position]
        told = rates_of(problem).get(completion.id, NOTHING_TOLD)
        before, after = told.before, told.after
        if confirmation is not None:
            after = _success_after(confirmation, completion.verdict)
            before = min(max(after - pivot.delta, 0.0), 1.0)
        evidence = Evidence(
            problem_id=pivot.problem_id,
            completion_id=pivot.completion_id,
            position=pivot.position,
            prompt_ids=completion.prompt_ids,
            prefix_ids=prefix,
            chosen_ids=pivot.chosen_ids,
            rejected_ids=pivot.rejected_ids,
            delta=pivot.delta,
            low=pivot.low,
            high=pivot.high,
            p_value=pivot.p_value,
            q_value=pivot.q_value,
            on_path_rollouts=0 if confirmation is None else confirmation.n1,
            alternative_rollouts=0 if confirmation is None else confirmation.n2,
            alternatives=pivot.alternatives,
        )
        return cls(
            pivot,
            problem,
            (*completion.prompt_ids, *prefix),
            pivot.rejected_ids if pivot.delta > 0 else pivot.chosen_ids,
            before,
            after,
            evidence,
            told,
        )

    def rate_of(self, ids: tuple[int, ...]) -> tuple[float | None, int]:
        """Success rate after an alternative, and its judged rollouts; where it was never drawn, what is told, and 0."""
        for count in self.pivot.alternatives:
            if count.ids == ids and (rollouts := count.successes + count.failures):
                return count.successes / rollouts, rollouts
        return self.told.other, 0


def _success_after(confirmation: ConfirmationRecord, verdict: Verdict) -> float:
    """V after the token: the completion's own verdict where nothing leaves it, else the rate of what left."""
    own = float(verdict is Verdict.CORRECT)
    if confirmation.n1 == 0:
        return own
    return (1 - confirmation.leave) * own + confirmation.leave * confirmation.x1 / confirmation.n1
