"""A completion as the search sees it: how likely each token was, and where a rollout leaves it.

Quantities (docs/discovery.md): V_k = P(success | first k tokens); pi_k the probability of token k under the sampler;
A_k = P(success) when another token comes at k. Then V_k = pi_k V_{k+1} + (1 - pi_k) A_k for the 0-based token k, so
its effect V_{k+1} - V_k is (1 - pi_k)(V_{k+1} - A_k), and a token with pi_k > 1 - tau can't be pivotal.

Where a rollout first leaves the completion has a known distribution, the products of the pi. So no rollout is spent
on following it: the place is drawn first, and generation starts there with another token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from steering_pts.ledger.records import RolloutKey
from steering_pts.oracles.base import Verdict

_LEAST_PROBABILITY = 1e-12  # a token that was drawn had a chance, whatever rounding makes of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rollout came to.

    Attributes:
        verdict: The oracle's.
        divergence: Position of the first token that differs from the completion's.
        also: Other completions of the run that it is an exact draw of as well, with the position where it leaves each.
    """

    verdict: Verdict
    divergence: int
    also: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens `[start, end)` that are taken or left as one; `probability` is that of taking all of them."""

    start: int
    end: int
    probability: float
    is_candidate: bool


@dataclass(frozen=True)
class Trace:
    """A completion to search.

    Attributes:
        completion_id: Its id in the run.
        probabilities: Of each of its tokens under the sampler, `[tokens]`.
        succeeded: Its own verdict: the value after its last token.
        spans: The units that can be pivotal, `[start, end)` each, in order and without gaps; empty means every token.
        known: Draws that were made before the search and leave this completion.
        repeats: How many of its first tokens another trace of the run has as well. What is decided there is that
            one's to search, so that the same token after the same prefix is one hypothesis.
    """

    completion_id: str
    probabilities: tuple[float, ...]
    succeeded: bool
    spans: tuple[tuple[int, int], ...] = ()
    known: tuple[Outcome, ...] = ()
    repeats: int = 0

    @cached_property
    def log_survival(self) -> NDArray[np.float64]:
        """Log-probability of following the completion for its first k tokens, `[tokens + 1]`."""
        logs = np.log(np.clip(np.asarray(self.probabilities, dtype=np.float64), _LEAST_PROBABILITY, 1.0))
        return np.concatenate([[0.0], np.cumsum(logs)])

    @cached_property
    def end_of(self) -> dict[int, int]:
        """Where the unit that begins at a position ends."""
        return dict(self.spans) if self.spans else {k: k + 1 for k in range(len(self.probabilities))}

    def follow(self, start: int, end: int | None = None) -> float:
        """Probability of following the completion from position `start` to `end`, or to its last token."""
        stop = len(self.probabilities) if end is None else end
        return math.exp(float(self.log_survival[stop] - self.log_survival[start]))

    def leave(self, start: int, end: int | None = None) -> float:
        """Probability of leaving the completion between `start` and `end`; exact where it is tiny."""
        stop = len(self.probabilities) if end is None else end
        return -math.expm1(float(self.log_survival[stop] - self.log_survival[start]))

    def leaves_at(self, key: RolloutKey, uniform: float) -> int:
        """Where the rollout of a key leaves the completion, given that it does.

        Args:
            key: `alternative` leaves inside the unit at its position, `on_path` after that unit.
            uniform: A uniform random number in [0, 1), which decides.

        Returns:
            Position of the first token that is not the completion's.
        """
        unit_end = self.end_of[key.position]
        start, end = (
            (key.position, unit_end) if key.arm == "alternative" else (unit_end, len(self.probabilities))
        )
        left_by = -np.expm1(self.log_survival[start + 1 : end + 1] - self.log_survival[start])
        index = int(np.searchsorted(left_by, uniform * left_by[-1], side="right"))
        return min(start + index, end - 1)

    def steps(self, tau: float) -> tuple[Step, ...]:
        """The candidates, each a step of its own, and everything between two of them as one step.

        The certified screen costs no rollout: |effect| <= 1 - probability, so a unit more likely than 1 - tau is none.
        """
        steps: list[Step] = []
        waiting: int | None = None  # where the units that are no candidates began
        for start, end in self.end_of.items():
            probability = min(self.follow(start, end), 1.0)
            if probability <= 1 - tau:
                if waiting is not None:
                    steps.append(Step(waiting, start, self.follow(waiting, start), is_candidate=False))
                steps.append(Step(start, end, probability, is_candidate=True))
                waiting = None
            elif waiting is None:
                waiting = start
        if waiting is not None:
            steps.append(Step(waiting, len(self.probabilities), self.follow(waiting), is_candidate=False))
        return tuple(steps)


def candidates(probabilities: tuple[float, ...], tau: float) -> tuple[int, ...]:
    """The certified screen for single tokens: positions whose token can be pivotal at all, pi_k <= 1 - tau."""
    return tuple(k for k, probability in enumerate(probabilities) if probability <= 1 - tau)
