"""From rollouts that a search asks for to their outcomes: from the ledger, or sampled, judged and put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from steering_engine.engine.sampling import uniform
from steering_pts.data import Problem
from steering_pts.keeping import sample_and_keep
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import CompletionRecord, RolloutKey, RolloutRecord
from steering_pts.oracles.base import Oracle
from steering_pts.oracles.registry import judge_all
from steering_pts.pivots import first_difference
from steering_pts.progress import Advance
from steering_pts.rollouts import Rollout, RolloutRequest, RolloutSource
from steering_pts.search import Outcome, Trace
from steering_pts.search.confirmation import CONFIRM
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.watching import until_for

_MOST_AT_ONCE = 8192
"""Rollouts asked for at once: their prefixes take memory."""


class Parts(Protocol):
    """What of a run rollouts need; a `Discovery` has it."""

    @property
    def source(self) -> RolloutSource:
        """Samples."""

    @property
    def oracle(self) -> Oracle:
        """Judges."""

    @property
    def ledger(self) -> Ledger:
        """Keeps."""

    @property
    def sampler(self) -> SamplerSettings:
        """How completions are drawn."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    def text(self, ids: Sequence[int]) -> str:
        """Ids as the oracle reads them."""

    def room(self, prefix: Sequence[int]) -> int:
        """Most tokens that may follow a prefix."""


@dataclass(slots=True)
class Outcomes:
    """The outcomes of the rollouts of one run."""

    parts: Parts
    completions: Mapping[str, CompletionRecord]
    traces: Mapping[str, Trace]
    problems: Mapping[str, Problem]
    _siblings: dict[str, list[CompletionRecord]] = field(init=False)

    def __post_init__(self) -> None:
        self._siblings = {}
        for completion in self.completions.values():
            self._siblings.setdefault(completion.problem_id, []).append(completion)

    def of(self, keys: Sequence[RolloutKey], advance: Advance) -> dict[RolloutKey, Outcome]:
        """The outcome of every key; what the ledger does not hold is made and put into it."""
        ledger = self.parts.ledger
        records = ledger.find_rollouts(keys)
        missing = [key for key in keys if key not in records]
        for start in range(0, len(missing), _MOST_AT_ONCE):
            for record in self._make(missing[start : start + _MOST_AT_ONCE], advance):
                records[record.key] = record
        return {key: self._outcome(records[key]) for key in keys}

    def _make(self, keys: Sequence[RolloutKey], advance: Advance) -> list[RolloutRecord]:
        requests = [self._request(key, self._leaves_at(key)) for key in keys]
        made: list[RolloutRecord] = []

        def keep(finished: Sequence[tuple[int, Rollout]]) -> None:
            records = self._judged([(keys[index], rollout) for index, rollout in finished])
            self.parts.ledger.add_rollouts(records)
            made.extend(records)

        sample_and_keep(self.parts.source, requests, keep, advance)
        return made

    def _judged(self, finished: Sequence[tuple[RolloutKey, Rollout]]) -> list[RolloutRecord]:
        places = [self._leaves_at(key) for key, _ in finished]
        owns = [self.completions[key.completion_id] for key, _ in finished]
        judgements = judge_all(
            self.parts.oracle,
            [
                (
                    self.problems[own.problem_id],
                    self.parts.text((*own.ids[:place], *rollout.ids)),
                    rollout.truncated,
                )
                for own, place, (_, rollout) in zip(owns, places, finished, strict=True)
            ],
        )
        return [
            RolloutRecord(
                key=key,
                seed=self._seed(key),
                ids=(*own.ids[key.position : place], *rollout.ids),
                verdict=judgement.verdict,
                extracted=judgement.extracted,
                tokens=len(rollout.ids),
                failed=judgement.failed,
            )
            for (key, rollout), own, place, judgement in zip(finished, owns, places, judgements, strict=True)
        ]

    def _request(self, key: RolloutKey, place: int) -> RolloutRequest:
        completion = self.completions[key.completion_id]
        prefix = (*completion.prompt_ids, *completion.ids[:place])
        return RolloutRequest(
            prefix_ids=prefix,
            max_tokens=min(self.parts.room(prefix), self.parts.sampler.max_tokens - place),
            seed=self._seed(key),
            banned_first_ids=(completion.ids[place],),
            until=until_for(
                self.parts.oracle,
                self.problems[completion.problem_id],
                self.parts.text(completion.ids[:place]),
            ),
        )

    def _leaves_at(self, key: RolloutKey) -> int:
        # Step 0 of the seed draws the first token, so the place has a seed of its own.
        place_seed = derive_seed(self._seed(key), "place")
        return self.traces[key.completion_id].leaves_at(key, uniform(place_seed, 0))

    def _seed(self, key: RolloutKey) -> int:
        return derive_seed(self.parts.seed, key.completion_id, key.position, key.arm, key.stage, key.index)

    def _outcome(self, record: RolloutRecord) -> Outcome:
        own = self.completions[record.key.completion_id]
        place = self._leaves_at(record.key)
        if record.key.stage == CONFIRM:  # fresh rollouts are for their own nominee alone
            return Outcome(record.verdict, place)
        ids = (*own.ids[: record.key.position], *record.ids)
        also = (
            (sibling.id, left_at)
            for sibling in self._siblings[own.problem_id]
            if sibling.id != own.id and (left_at := also_leaves(ids, place, own.ids, sibling.ids)) is not None
        )
        return Outcome(record.verdict, place, tuple(also))


def also_leaves(
    ids: Sequence[int], place: int, own_ids: Sequence[int], sibling_ids: Sequence[int]
) -> int | None:
    """Where a rollout leaves another completion of the same problem, if it is an exact draw of that one too.

    It is where every token from the leaving one on was drawn as the sampler draws an alternative to the other
    completion's: after `place` freely, and at `place` without the same token.

    Args:
        ids: The rollout from the first generated token on.
        place: Where it left its own completion, whose token was excluded there.
        own_ids: Ids of its own completion.
        sibling_ids: Ids of the other one.
    """
    left_at = first_difference(ids, sibling_ids)
    if left_at is None or left_at < place:
        return None
    return left_at if left_at > place or sibling_ids[place] == own_ids[place] else None


def known_outcomes(completion: CompletionRecord, others: Sequence[CompletionRecord]) -> tuple[Outcome, ...]:
    """What the other completions of its problem say: each was drawn freely, and leaves it somewhere."""
    places = (
        (other, first_difference(other.ids, completion.ids)) for other in others if other.id != completion.id
    )
    return tuple(Outcome(other.verdict, place) for other, place in places if place is not None)
