"""Which rollouts to make next: where it is most open whether a token is pivotal, over all completions of a run.

A candidate whose P(|effect| >= tau) is near 0 or 1 needs no more. The others share what is left of the budget, the
most ambiguous first, wherever in the run they are. A candidate's rollouts go to whichever of its two sides is known
worse: one more draw shrinks the variance v of a rate r by about v^2 / (v + r (1 - r)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from steering_pts.ledger.records import Arm, RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search.chain import Posterior, StepPrior, ValueChain
from steering_pts.search.trace import Outcome, Trace
from steering_pts.settings import SearchSettings

EXPLORE = "explore"
NEGLIGIBLE = 1e-6
"""Below this chance of leaving the completion, what comes after a token is known without rollouts."""

_LEARNING_ROUNDS = (2, 4, 8, 16)
"""When the prior is learned; each time costs a posterior of every completion."""

_MOST_KEPT_STEPS = 40_000
"""Of all completions together; beyond that (1.2 GB) their factors are computed again in every round."""

_USUAL_CANDIDATES = 70
"""What `budget` is meant for, those of 200 tokens of which 35 % were not certain; more get more, in proportion."""

_KINDS = {Verdict.CORRECT: 0, Verdict.INCORRECT: 1, Verdict.CENSORED: 2}


def budget_for(candidates: int, budget: int) -> float:
    """Rollouts that a completion with so many candidates of its own adds to what a run may spend."""
    return budget * max(1.0, candidates / _USUAL_CANDIDATES) if candidates else 0.0


@dataclass(slots=True)
class Explored:
    """One completion under exploration.

    Attributes:
        searched: Which of the chain's candidates are its own to search, `[candidates]`; another trace has the others.
    """

    trace: Trace
    settings: SearchSettings
    chain: ValueChain = field(init=False)
    searched: NDArray[np.bool_] = field(init=False)
    posterior: Posterior | None = field(default=None, init=False)
    _asked: dict[tuple[int, Arm], int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.chain = ValueChain(
            self.trace.steps(settings.tau),
            succeeded=self.trace.succeeded,
            tau=settings.tau,
            prior=StepPrior(settings.rho, settings.sd),
        )
        ends = np.array([self.chain.steps[step].end for step in self.chain.candidates], dtype=np.int64)
        self.searched = ends > self.trace.repeats
        for outcome in self.trace.known:
            self.add(outcome.divergence, outcome.verdict)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the candidates."""
        return tuple(self.chain.steps[step].start for step in self.chain.candidates)

    @property
    def budget(self) -> float:
        """Rollouts that it adds to what the run may spend."""
        return budget_for(int(self.searched.sum()), self.settings.budget)

    def add(self, position: int, verdict: Verdict) -> None:
        """A draw that leaves this completion at a position."""
        self.chain.add(position, _KINDS[verdict])

    def first_asks(self, position: int) -> Iterator[RolloutKey]:
        """The first rollouts of the candidate at a position: alternatives."""
        share = self.budget * self.settings.explore_share / (2 * self.searched.sum())
        yield from self._keys(
            position, "alternative", self.settings.explore_first or int(np.clip(share, 2, 8))
        )

    def ambiguities(self) -> list[tuple[float, int]]:
        """(ambiguity, index) of the candidates that are still too ambiguous, the most ambiguous first."""
        self.posterior = self.chain.posterior()
        pivotal = self.posterior.pivotal
        ambiguity = np.where(self.searched, np.minimum(pivotal, 1 - pivotal), 0.0)
        had = np.array([self._had(position) for position in self.positions])
        ambiguity[had >= self.settings.explore_most] = 0.0  # confirmation settles it
        order = np.argsort(-ambiguity, kind="stable")[: self.settings.explore_widest]
        open_ = [(float(ambiguity[i]), int(i)) for i in order if ambiguity[i] >= self.settings.ambiguity]
        if not open_:
            self.chain.release()
        return open_

    def batch(self, index: int) -> int:
        """How many rollouts a candidate gets next.

        What stays ambiguous after many needs many more; by the same few, rounds would be small and endless.
        """
        had = self._had(self.positions[index])
        return min(max(self.settings.explore_batch, had // 2), self.settings.explore_most - had)

    def more_asks(self, index: int) -> Iterator[RolloutKey]:
        """More rollouts of a candidate, on the side that is known worse."""
        posterior = self.posterior
        assert posterior is not None  # noqa: S101 -- `ambiguities` has chosen the candidate
        position = self.positions[index]
        can_leave_later = self.trace.leave(self.trace.end_of[position]) > NEGLIGIBLE
        alternative_rate, value_rate = posterior.alternative[index], posterior.value[index]
        sides = [
            [posterior.alternative_variance[index], alternative_rate * (1 - alternative_rate) + 1e-4],
            [
                posterior.value_variance[index] if can_leave_later else 0.0,
                value_rate * (1 - value_rate) + 1e-4,
            ],
        ]
        counts = [0, 0]
        for _ in range(self.batch(index)):
            gains = [variance**2 / (variance + spread) for variance, spread in sides]
            side = 1 if can_leave_later and gains[1] > gains[0] else 0
            sides[side][0] -= gains[side]
            counts[side] += 1
        yield from self._keys(position, "alternative", counts[0])
        yield from self._keys(position, "on_path", counts[1])

    def _had(self, position: int) -> int:
        """Rollouts that were asked for at a position."""
        return self._asked.get((position, "alternative"), 0) + self._asked.get((position, "on_path"), 0)

    def _keys(self, position: int, arm: Arm, count: int) -> Iterator[RolloutKey]:
        done = self._asked.get((position, arm), 0)
        self._asked[position, arm] = done + count
        for index in range(done, done + count):
            yield RolloutKey(self.trace.completion_id, position, arm, EXPLORE, index)


class Exploration:
    """Explores all completions of a run in rounds; `asks` and `tell` alternate until nothing is asked for."""

    def __init__(self, traces: list[Trace], settings: SearchSettings) -> None:
        self.explored = {trace.completion_id: Explored(trace, settings) for trace in traces}
        self.used = 0
        self._settings = settings
        self._round = 0
        self._open = set(self.explored)
        steps = sum(len(own.chain.steps) for own in self.explored.values())
        self._keeps_factors = steps <= _MOST_KEPT_STEPS

    @cached_property
    def budget(self) -> int:
        """Rollouts that the run may take, over all completions that have candidates."""
        return int(sum(own.budget for own in self.explored.values()))

    @property
    def pool(self) -> int:
        """Rollouts of the budget that exploration may take."""
        return int(self.budget * self._settings.explore_share)

    def asks(self) -> list[RolloutKey]:
        """The rollouts of the next round; none when exploration has ended."""
        self._round += 1
        asks = self._first_round() if self._round == 1 else self._next_round()
        self.used += len(asks)
        return asks

    def tell(self, outcomes: dict[RolloutKey, Outcome]) -> None:
        """Takes the outcomes of a round."""
        for key, outcome in outcomes.items():
            self.explored[key.completion_id].add(outcome.divergence, outcome.verdict)
            for completion_id, position in outcome.also:
                own = self.explored.get(completion_id)
                if own is None:  # of the run, but not searched
                    continue
                step = own.chain.step_at(position)
                # Where in a longer step it leaves is only drawn rightly when it was free from the step's beginning.
                if step.start > outcome.divergence or step.end == step.start + 1:
                    own.add(position, outcome.verdict)
                    self._open.add(completion_id)
            self._open.add(key.completion_id)

    def _first_round(self) -> list[RolloutKey]:
        """The first rollouts of every candidate; where they would exceed the pool, of those that can matter most."""
        candidates = [
            (own, position)
            for own in self.explored.values()
            for position, searched in zip(own.positions, own.searched, strict=True)
            if searched
        ]
        # |effect| <= the probability of another token; rounded, for sums of logarithms differ in their last bits.
        candidates.sort(key=lambda c: -round(c[0].trace.leave(c[1], c[0].trace.end_of[c[1]]), 9))
        asks: list[RolloutKey] = []
        for own, position in candidates:
            keys = list(own.first_asks(position))
            if len(asks) + len(keys) > self.pool:
                break
            asks += keys
        return sorted(asks)

    def _next_round(self) -> list[RolloutKey]:
        if self._settings.learn_prior and self._round in _LEARNING_ROUNDS:
            self.learn_prior()
        left = self.pool - self.used
        wanted: list[tuple[float, str, int]] = []
        for completion_id in sorted(self._open):
            own = self.explored[completion_id]
            found = own.ambiguities() if own.searched.any() else []
            if not found:
                self._open.discard(completion_id)
            if not self._keeps_factors:
                own.chain.release()
            wanted += [(-ambiguity, completion_id, index) for ambiguity, index in found]
        asks: list[RolloutKey] = []
        for _, completion_id, index in sorted(wanted):
            own = self.explored[completion_id]
            if len(asks) + own.batch(index) > left:
                break
            asks += own.more_asks(index)
        return asks

    def learn_prior(self) -> StepPrior:
        """One step of expectation-maximisation: the step prior that the run's own effects suggest."""
        settings = self._settings
        large = square = count = 0.0
        owns = [own for _, own in sorted(self.explored.items()) if own.searched.any()]
        for own in owns:
            more_large, more_square = own.chain.prior_evidence(own.searched)
            large, square, count = large + more_large, square + more_square, count + own.searched.sum()
        # The settings count as much as `prior_weight` candidates: a short run keeps close to them.
        weight = settings.prior_weight
        rho = (large + weight * settings.rho) / (count + weight)
        sd = np.sqrt((square + weight * settings.sd**2) / (count - large + weight))
        prior = StepPrior(round(float(np.clip(rho, 0.01, 0.5)), 6), round(float(np.clip(sd, 0.01, 0.1)), 6))
        for own in owns:
            own.chain.set_prior(prior)
            self._open.add(own.trace.completion_id)
        return prior
