"""The search in one completion: a certified screen, exploration, nomination, and fresh confirmation.

Quantities (docs/discovery.md): V_k = P(success | first k tokens); pi_k the probability of token k under the sampler;
A_k = P(success) when another token comes at k. Then V_{k-1} = pi_k V_k + (1 - pi_k) A_k, so the effect of token k is
(1 - pi_k)(V_k - A_k). Consequences used here: a token with pi_k > 1 - tau can't be pivotal, whatever its rollouts say;
rollouts that retake token k are never paid for; and a rollout on the path that first leaves it at a later position j
is a free draw of A_j.

The search asks for rollouts by key and is told their outcomes, so the same code runs against an engine, a ledger of
earlier outcomes, or a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from steering_pts.ledger.records import Arm, ConfirmationRecord, NomineeRecord, RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.settings import SearchSettings
from steering_pts.statistics import Estimate, difference_interval, score_test_p

EXPLORE, CONFIRM = "explore", "confirm"
_GRID = np.linspace(0.0, 1.0, 513)


@dataclass(frozen=True, slots=True)
class Trace:
    """A completion to search: the probability of each of its tokens under the sampler, `[tokens]`."""

    completion_id: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rollout came to.

    Attributes:
        verdict: The oracle's.
        divergence: Position of the first token that differs from the completion's; None if it follows it to the end.
    """

    verdict: Verdict
    divergence: int | None = None


@dataclass(slots=True)
class _Counts:
    """Successes, failures and censored rollouts of one arm."""

    successes: int = 0
    failures: int = 0
    censored: int = 0

    def add(self, verdict: Verdict) -> None:
        if verdict is Verdict.CORRECT:
            self.successes += 1
        elif verdict is Verdict.INCORRECT:
            self.failures += 1
        else:
            self.censored += 1

    @property
    def judged(self) -> int:
        return self.successes + self.failures


class CompletionSearch:
    """Searches one completion: call `asks`, answer with `tell`, until nothing is asked for any more.

    Attributes:
        nominees: Candidates that were nominated, by position, once exploration has ended.
        confirmations: Results of the fresh rollouts, by position, once the search has ended.
    """

    def __init__(self, trace: Trace, settings: SearchSettings) -> None:
        self.trace = trace
        self.nominees: list[NomineeRecord] = []
        self.confirmations: list[ConfirmationRecord] = []
        self._settings = settings
        self._candidates = candidates(trace.probabilities, settings.tau)
        self._on_path = {k: _Counts() for k in self._candidates}
        self._alternative = {k: _Counts() for k in self._candidates}
        self._explored = dict.fromkeys(self._candidates, 0)
        self._stage = EXPLORE

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask for."""
        return self._stage == "done"

    def asks(self) -> list[RolloutKey]:
        """The rollouts that are needed next; none when the search has ended."""
        if self._stage == EXPLORE:
            asks = self._exploration()
            if asks:
                return asks
            self._nominate()
        if self._stage == CONFIRM:
            return [
                self._key(nominee.position, arm, CONFIRM, index)
                for nominee in self.nominees
                for arm in ("on_path", "alternative")
                for index in range(self._settings.confirm)
            ]
        return []

    def tell(self, outcomes: Mapping[RolloutKey, Outcome]) -> None:
        """Takes the outcomes of what `asks` returned."""
        if self._stage == CONFIRM:
            self._confirm(outcomes)
            self._stage = "done"
            return
        for key, outcome in outcomes.items():
            arm = self._on_path if key.arm == "on_path" else self._alternative
            arm[key.position].add(outcome.verdict)
            self._explored[key.position] = max(self._explored[key.position], key.index + 1)
            left_at = outcome.divergence
            if key.arm == "on_path" and left_at in self._alternative:
                self._alternative[left_at].add(outcome.verdict)

    def _exploration(self) -> list[RolloutKey]:
        settings = self._settings
        asks = []
        for position in self._candidates:
            done = self._explored[position]
            more = settings.explore_first if done == 0 else settings.explore_batch
            if done and (done >= settings.explore_most or not self._is_ambiguous(position)):
                continue
            for arm in ("on_path", "alternative"):
                asks += [self._key(position, arm, EXPLORE, index) for index in range(done, done + more)]
        return asks

    def _is_ambiguous(self, position: int) -> bool:
        probability = sum(self._posterior(position))
        return min(probability, 1 - probability) >= self._settings.ambiguity

    def _posterior(self, position: int) -> tuple[float, float]:
        on_path, alternative = self._on_path[position], self._alternative[position]
        return effect_posterior(
            (on_path.successes, on_path.failures),
            (alternative.successes, alternative.failures),
            scale=1 - self.trace.probabilities[position],
            tau=self._settings.tau,
        )

    def _nominate(self) -> None:
        for position in self._candidates:
            positive, negative = self._posterior(position)
            if positive + negative >= self._settings.nominate:
                on_path, alternative = self._on_path[position], self._alternative[position]
                self.nominees.append(
                    NomineeRecord(
                        completion_id=self.trace.completion_id,
                        position=position,
                        sign=1 if positive >= negative else -1,
                        posterior=min(positive + negative, 1.0),
                        explored=(
                            on_path.successes,
                            on_path.failures,
                            alternative.successes,
                            alternative.failures,
                        ),
                    )
                )
        self._stage = CONFIRM if self.nominees else "done"

    def _confirm(self, outcomes: Mapping[RolloutKey, Outcome]) -> None:
        counts: dict[tuple[int, str], _Counts] = {}
        for key, outcome in outcomes.items():
            counts.setdefault((key.position, key.arm), _Counts()).add(outcome.verdict)
        for nominee in self.nominees:
            on_path = counts[nominee.position, "on_path"]
            alternative = counts[nominee.position, "alternative"]
            # Every nominee is part of the correction's family, those whose rollouts were all censored too.
            self.confirmations.append(self._confirmation(nominee, on_path, alternative))

    def _confirmation(
        self, nominee: NomineeRecord, on_path: _Counts, alternative: _Counts
    ) -> ConfirmationRecord:
        scale = 1 - self.trace.probabilities[nominee.position]
        better, worse = (on_path, alternative) if nominee.sign > 0 else (alternative, on_path)
        # A censored rollout is neither success nor failure: in the test it counts against the effect.
        p_value = score_test_p(
            better.successes,
            better.judged + better.censored,
            worse.successes + worse.censored,
            worse.judged + worse.censored,
            self._settings.delta0 / scale,
        )
        x1, n1, x2, n2 = on_path.successes, on_path.judged, alternative.successes, alternative.judged
        unknown = Estimate(0.0, -scale, scale)
        effect = difference_interval(x1, n1, x2, n2, scale) if n1 and n2 else unknown
        return ConfirmationRecord(
            nominee.completion_id,
            nominee.position,
            x1,
            n1,
            x2,
            n2,
            p_value,
            effect.value,
            effect.low,
            effect.high,
        )

    def _key(self, position: int, arm: Arm, stage: str, index: int) -> RolloutKey:
        return RolloutKey(self.trace.completion_id, position, arm, stage, index)


def candidates(probabilities: tuple[float, ...], tau: float) -> tuple[int, ...]:
    """The certified screen: positions whose token can be pivotal at all, pi_k <= 1 - tau. Costs no rollout."""
    return tuple(k for k, probability in enumerate(probabilities) if probability <= 1 - tau)


def effect_posterior(
    on_path: tuple[int, int], alternative: tuple[int, int], scale: float, tau: float
) -> tuple[float, float]:
    """P(effect >= tau) and P(effect <= -tau) for effect = scale * (V - A), V and A under uniform priors.

    Args:
        on_path: Successes and failures with the token.
        alternative: Successes and failures without it.
        scale: 1 - pi of the token.
        tau: The size that makes a token pivotal.
    """
    margin = tau / scale
    weights = np.diff(special.betainc(alternative[0] + 1, alternative[1] + 1, _GRID))
    middles = (_GRID[1:] + _GRID[:-1]) / 2
    cumulative = (on_path[0] + 1, on_path[1] + 1)
    above = 1 - special.betainc(*cumulative, np.clip(middles + margin, 0, 1))
    below = special.betainc(*cumulative, np.clip(middles - margin, 0, 1))
    return float(weights @ above), float(weights @ below)
