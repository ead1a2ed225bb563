"""What the completions and rollouts of a run say of each step of its completions.

All samples of a problem are put together by prefix. A sample is an exact draw of the success after each of its tokens
from the one on that it drew freely: a completion from the first, a rollout from the one with which it leaves the
completion that it was made for. (Of the tokens before, it tells nothing by itself: it was made to leave later.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from steering_pts.ledger import LedgerReader
from steering_pts.ledger.records import CompletionRecord, RolloutRecord
from steering_pts.oracles.base import Verdict
from steering_pts.outcomes import known_outcomes
from steering_pts.pivots import first_difference
from steering_pts.search import Trace
from steering_pts.search.chain import StepPrior, ValueChain
from steering_pts.vectors.trie import PrefixTrie
from steering_pts.vectors.variance import as_counts

_KINDS = {Verdict.CORRECT: 0, Verdict.INCORRECT: 1, Verdict.CENSORED: 2}


@dataclass(slots=True)
class StepDraws:
    """What is known of the tokens that can come at one step.

    Attributes:
        by_token: Successes, failures and censored samples after each token that was drawn there.
        indirect: Of the own tokens of searched completions: what all later draws of these say, as successes and
            failures. It takes the place of the direct draws, which are among them.
    """

    by_token: dict[int, list[int]] = field(default_factory=dict)
    indirect: dict[int, tuple[float, float]] = field(default_factory=dict)

    def add(self, token_id: int, verdict: Verdict) -> None:
        """One more sample."""
        self.by_token.setdefault(token_id, [0, 0, 0])[_KINDS[verdict]] += 1


@dataclass(frozen=True, slots=True)
class _Left:
    """A rollout with all its ids, and where it leaves its completion."""

    ids: tuple[int, ...]
    place: int
    verdict: Verdict


def draws_of_run(
    ledger: LedgerReader,
    records: Sequence[CompletionRecord],
    trie: PrefixTrie,
    tau: float,
    prior: StepPrior,
) -> dict[int, StepDraws]:
    """The draws at every step of a run's completions, by the step's node.

    Args:
        ledger: The run.
        records: Its completions.
        trie: Prompt and ids of each, added.
        tau: The search's, by which it tells candidates.
        prior: The search's, of their effects.
    """
    draws: dict[int, StepDraws] = defaultdict(StepDraws)

    def add(prompt: Sequence[int], ids: Sequence[int], free_from: int, verdict: Verdict) -> None:
        nodes = trie.path((*prompt, *ids))[len(prompt) :]
        for node, token_id in list(zip(nodes, ids, strict=False))[free_from:]:
            draws[node].add(token_id, verdict)

    of_problem: dict[str, list[CompletionRecord]] = defaultdict(list)
    for record in records:
        add(record.prompt_ids, record.ids, 0, record.verdict)
        of_problem[record.problem_id].append(record)
    probabilities = {score.completion_id: score.probabilities for score in ledger.scores()}
    for record in records:
        if record.id not in probabilities:
            continue
        rollouts = [left for r in ledger.rollouts_for(record.id) if (left := _left(record, r)) is not None]
        for left in rollouts:
            add(record.prompt_ids, left.ids, left.place, left.verdict)
        trace = Trace(
            record.id,
            probabilities[record.id],
            succeeded=record.verdict is Verdict.CORRECT,
            known=known_outcomes(record, of_problem[record.problem_id]),
        )
        nodes = trie.path((*record.prompt_ids, *record.ids))[len(record.prompt_ids) :]
        for position, counts in _later_draws(trace, rollouts, tau, prior):
            draws[nodes[position]].indirect[record.ids[position]] = counts
    return draws


def _left(record: CompletionRecord, rollout: RolloutRecord) -> _Left | None:
    ids = (*record.ids[: rollout.key.position], *rollout.ids)
    place = first_difference(ids, record.ids)
    return None if place is None else _Left(ids, place, rollout.verdict)


def _later_draws(
    trace: Trace, rollouts: Sequence[_Left], tau: float, prior: StepPrior
) -> list[tuple[int, tuple[float, float]]]:
    """For each candidate of a searched completion its position, and what is known of success after its own token.

    The search's model of the value curve tells it, without the draws at the candidate itself: those are of the other
    tokens, and speak for themselves.
    """
    chain = ValueChain(trace.steps(tau), succeeded=trace.succeeded, tau=tau, prior=prior)
    for outcome in trace.known:
        chain.add(outcome.divergence, _KINDS[outcome.verdict])
    for left in rollouts:
        chain.add(left.place, _KINDS[left.verdict])
    found = []
    for index, number in enumerate(chain.candidates):
        step = int(number)
        own = chain.draws[step].copy()
        chain.set_draws(step, np.zeros_like(own))
        posterior = chain.posterior()
        chain.set_draws(step, own)
        counts = as_counts(float(posterior.value[index]), float(posterior.value_variance[index]))
        found.append((chain.steps[step].start, counts))
    return found
