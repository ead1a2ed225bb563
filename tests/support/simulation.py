"""Completions of which every probability is known, and rollouts of them: what a search can be held against."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from steering_pts.ledger.records import RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search import Outcome, Search, Trace
from steering_pts.seeds import derive_seed
from steering_pts.settings import SearchSettings

Answer = Callable[[RolloutKey], Outcome]


@dataclass(frozen=True)
class Simulation:
    """A completion that succeeded or failed, with pi_k and A_k of every token; every V_k follows from them."""

    pi: tuple[float, ...]
    alternative: tuple[float, ...]
    succeeded: bool = True

    def values(self) -> list[float]:
        """V_k, P(success | the first k tokens), for k = 0 … T."""
        values = [float(self.succeeded)]
        for pi, alternative in zip(reversed(self.pi), reversed(self.alternative), strict=True):
            values.append(pi * values[-1] + (1 - pi) * alternative)
        return values[::-1]

    def effects(self) -> list[float]:
        """V_{k+1} - V_k of token k."""
        return [after - before for before, after in itertools.pairwise(self.values())]

    def trace(self, name: str = "c") -> Trace:
        """What the search is told of it."""
        return Trace(name, self.pi, self.succeeded)

    def roll(self, key: RolloutKey, seed: int = 0) -> Outcome:
        """One rollout, the same for the same key and seed."""
        chance = random.Random(
            derive_seed(seed, key.completion_id, key.position, key.arm, key.stage, key.index)
        )
        place = self.trace().leaves_at(key, chance.random())
        success = chance.random() < self.alternative[place]
        return Outcome(Verdict.CORRECT if success else Verdict.INCORRECT, place)

    def search(self, settings: SearchSettings, seed: int = 0) -> Search:
        """A search of it alone that has ended."""
        return finished([self.trace()], settings, lambda key: self.roll(key, seed))


def finished(traces: Sequence[Trace], settings: SearchSettings, answer: Answer) -> Search:
    """A search that has ended, with every rollout answered."""
    search = Search(traces, settings)
    while asks := search.asks():
        search.tell({key: answer(key) for key in asks})
    return search


def planted(length: int, forks: Sequence[int], effects: dict[int, float], rest: float = 0.97) -> Simulation:
    """A success with forks that have no effect (pi = 0.5), and planted effects (pi = 0.3)."""
    pi = [0.3 if k in effects else 0.5 if k in forks else rest for k in range(length)]
    alternative = [0.0] * length
    value = 1.0
    for k in reversed(range(length)):
        alternative[k] = value - effects.get(k, 0.0) / (1 - pi[k])
        assert -1e-12 <= alternative[k] <= 1 + 1e-12, "such an effect can't be"
        value = pi[k] * value + (1 - pi[k]) * alternative[k]
    return Simulation(tuple(pi), tuple(alternative))


@st.composite
def simulations(draw: st.DrawFn, longest: int = 30) -> Simulation:
    """Any completion at all."""
    tokens = draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=longest))
    return Simulation(tuple(pi for pi, _ in tokens), tuple(a for _, a in tokens), draw(st.booleans()))
