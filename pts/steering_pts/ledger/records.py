"""What a ledger holds, one frozen record for each kind of row.

Positions are 0-based indices of generated tokens: position k is about generated token k, steered
at step k. Token ids are those of the model's tokenizer. Every record checks itself when it is made
and raises ValueError; what is read back was checked when it was written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from steering_pts.oracles.base import Verdict

Arm = Literal["alternative", "on_path"]
ARMS: Final[tuple[Arm, ...]] = get_args(Arm)
_INT32: Final = 2**31
_INT63: Final = 2**63


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One sampled completion; (problem_id, index) is unique, and so is id.

    `ids` are the generated tokens, `prompt_ids` those before them, `finish_reason` is the engine's
    word for why it ended, `failed` whether it was censored because the oracle failed.
    """

    id: str
    problem_id: str
    index: int
    seed: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    verdict: Verdict
    extracted: str | None
    finish_reason: str
    failed: bool = False

    def __post_init__(self) -> None:
        _check_names(id=self.id, problem_id=self.problem_id)
        _check_counts(index=self.index, seed=self.seed)
        _check_ids(self.prompt_ids)
        _check_ids(self.ids)


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """The probability of each generated token under the sampler that drew it: `[len(ids)]`."""

    completion_id: str
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_names(completion_id=self.completion_id)
        for probability in self.probabilities:
            _check_probability(probability=probability)


@dataclass(frozen=True, slots=True, order=True)
class RolloutKey:
    """Which rollout: the `index`-th of a stage, from a position of a completion, in one arm.

    `alternative` leaves the completion within the token (or sentence) at `position`, `on_path` somewhere after it;
    where exactly is drawn from the known distribution of the place.
    """

    completion_id: str
    position: int
    arm: Arm
    stage: str
    index: int

    def __post_init__(self) -> None:
        _check_names(completion_id=self.completion_id, stage=self.stage)
        _check_counts(position=self.position, index=self.index)
        if self.arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, not {self.arm!r}")


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """One rollout: the ids from `key.position` on, and how many of them (`tokens`) were generated.

    The others are the completion's own, up to where the rollout leaves it. `failed` says whether it was censored
    because the oracle failed.
    """

    key: RolloutKey
    seed: int
    ids: tuple[int, ...]
    verdict: Verdict
    extracted: str | None
    tokens: int
    failed: bool = False

    def __post_init__(self) -> None:
        _check_counts(seed=self.seed, tokens=self.tokens)
        _check_ids(self.ids)


@dataclass(frozen=True, slots=True)
class NomineeRecord:
    """A candidate to be confirmed.

    `sign` is +1 or -1, `posterior` is P(|effect| >= tau | exploration), `effect` its posterior mean, `explored` the
    draws that left the completion there: (successes, failures, censored). `on_path` and `alternative` are the fresh
    rollouts that confirm it, after it and in its place; without any, the budget had nothing left for it.
    """

    completion_id: str
    position: int
    sign: int
    posterior: float
    effect: float
    explored: tuple[int, int, int]
    on_path: int
    alternative: int

    def __post_init__(self) -> None:
        _check_names(completion_id=self.completion_id)
        _check_counts(position=self.position, on_path=self.on_path, alternative=self.alternative)
        _check_probability(posterior=self.posterior)
        if self.sign not in {-1, 1}:
            raise ValueError(f"sign must be 1 or -1, not {self.sign}")
        if not -1 <= self.effect <= 1:
            raise ValueError(f"effect must be in [-1, 1], not {self.effect}")
        if len(self.explored) != 3 or min(self.explored) < 0:
            raise ValueError(f"explored must be three counts, not {self.explored}")

    def resized(self, on_path: int, alternative: int) -> NomineeRecord:
        """The same with other numbers of fresh rollouts."""
        return replace(self, on_path=on_path, alternative=alternative)


@dataclass(frozen=True, slots=True)
class ConfirmationRecord:
    """Fresh rollouts on both sides of a nominee.

    `x1` of `n1` judged rollouts that left the completion after it succeeded, `x2` of `n2` alternatives; `censored1`
    and `censored2` more could not be judged. `leave` is the known probability of leaving the completion after it.
    `delta` is the effect on P(success) with its interval, `p_value` the score test's.
    """

    completion_id: str
    position: int
    x1: int
    n1: int
    censored1: int
    x2: int
    n2: int
    censored2: int
    leave: float
    p_value: float
    delta: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_names(completion_id=self.completion_id)
        _check_counts(position=self.position, censored1=self.censored1, censored2=self.censored2)
        _check_probability(p_value=self.p_value, leave=self.leave)
        _check_effect(self.delta, self.low, self.high)
        if not (0 <= self.x1 <= self.n1 and 0 <= self.x2 <= self.n2):
            raise ValueError(f"{self.x1} of {self.n1} against {self.x2} of {self.n2} can't be")


@dataclass(frozen=True, slots=True)
class AlternativeCount:
    """What rollouts put in the pivot's place (a token, or a sentence), and what became of them."""

    ids: tuple[int, ...]
    successes: int
    failures: int

    def __post_init__(self) -> None:
        _check_some_ids(self.ids)
        _check_counts(successes=self.successes, failures=self.failures)


@dataclass(frozen=True, slots=True)
class PivotRecord:
    """A pivotal token or sentence: what was confirmed of it, and the pair that it decides between.

    `ids` are its tokens (one, or a sentence's), `probability` theirs under the sampler; `delta`, `low`, `high` its
    effect on P(success) with the interval of the confirmation alone; `chosen_ids` is the better one of the pair.
    """

    completion_id: str
    problem_id: str
    position: int
    ids: tuple[int, ...]
    probability: float
    delta: float
    low: float
    high: float
    p_value: float
    q_value: float
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    alternatives: tuple[AlternativeCount, ...]

    def __post_init__(self) -> None:
        _check_names(completion_id=self.completion_id, problem_id=self.problem_id)
        _check_counts(position=self.position)
        for ids in (self.ids, self.chosen_ids, self.rejected_ids):
            _check_some_ids(ids)
        _check_probability(probability=self.probability, p_value=self.p_value, q_value=self.q_value)
        _check_effect(self.delta, self.low, self.high)

    @property
    def token_id(self) -> int:
        """Its first token."""
        return self.ids[0]

    @property
    def chosen_id(self) -> int:
        """The first token of the better one of the pair."""
        return self.chosen_ids[0]

    @property
    def rejected_id(self) -> int:
        """The first token of the worse one of the pair."""
        return self.rejected_ids[0]


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """How much a ledger holds; tokens are generated ones. `unaffordable` nominees had no budget left."""

    problems: int
    completions: dict[Verdict, int]
    scored: int
    rollouts: dict[Verdict, int]
    stages: dict[str, int]
    nominees: int
    unaffordable: int
    confirmations: int
    pivots: int
    completion_tokens: int
    rollout_tokens: int
    oracle_failures: int


def _check_names(**names: str) -> None:
    for name, value in names.items():
        if not value:
            raise ValueError(f"{name} must not be empty")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not 0 <= value < _INT63:
            raise ValueError(f"{name} must be in 0..2**63-1, not {value}")


def _check_ids(ids: Sequence[int]) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < _INT32):
        raise ValueError("token ids must be in 0..2**31-1")


def _check_some_ids(ids: Sequence[int]) -> None:
    if not ids:
        raise ValueError("a pivot and its alternatives have at least one token each")
    _check_ids(ids)


def _check_probability(**probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}")


def _check_effect(delta: float, low: float, high: float) -> None:
    if not (math.isfinite(delta) and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"not an effect with its interval: {delta} [{low}, {high}]")
