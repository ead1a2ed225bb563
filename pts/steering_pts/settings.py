"""Settings of a discovery run, checked once, and stored in the run's ledger as they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from steering_pts.errors import SearchError
from steering_spec import SamplingParams

JsonValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """The sampler whose pivots are looked for; probabilities are those after temperature, top-k, top-p and min-p.

    Attributes:
        temperature: Above 0: a greedy sampler takes no decisions.
        top_p: Nucleus in (0, 1]; 1 is off.
        top_k: Keep the k most likely tokens; 0 keeps all.
        max_tokens: Longest completion; what is cut off is censored.
        min_p: Keep tokens at least this share as likely as the most likely one, in [0, 1]; 0 is off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    min_p: float = 0.0

    def __post_init__(self) -> None:
        _require(
            0 < self.temperature <= 100, f"temperature is {self.temperature}; expected above 0, at most 100"
        )
        _require(0 < self.top_p <= 1, f"top_p is {self.top_p}; expected above 0, at most 1")
        _require(self.top_k >= 0, f"top_k is {self.top_k}; expected 0 (all tokens) or more")
        _require(0 <= self.min_p <= 1, f"min_p is {self.min_p}; expected at least 0 (off), at most 1")
        _require(self.max_tokens >= 1, f"max_tokens is {self.max_tokens}; expected at least 1")

    def params(self, seed: int, room: int | None = None) -> SamplingParams:
        """The sampler as a request's parameters; `room` is what the context leaves, None where that is not known."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or None,
            max_tokens=self.max_tokens if room is None else min(self.max_tokens, room),
            seed=seed,
            min_p=self.min_p,
        )


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How pivots are searched for and confirmed.

    Attributes:
        tau: A token is pivotal when it moves P(success) by at least this much.
        delta0: Confirmation tests that the effect exceeds this; the guarantee is on effects below it.
        fdr: Level q of the Benjamini-Hochberg correction over all nominees of the run.
        base_rollouts: Completions sampled per problem, to see which problems are undecided.
        low: A problem is kept when P(low < P(success) < high) is at least one half.
        high: See `low`.
        completions_per_problem: Completions searched of each problem that is kept.
        explore_first: Rollouts on each side of every candidate to begin with.
        explore_batch: Rollouts on each side that an ambiguous candidate gets at a time.
        explore_most: Rollouts on each side after which exploration of a candidate ends.
        ambiguity: A candidate whose P(|effect| >= tau) is this far from 0 and 1 is explored further.
        nominate: P(|effect| >= tau) from which a candidate is confirmed.
        confirm: Fresh rollouts on each side of a nominee.
    """

    tau: float = 0.2
    delta0: float = 0.1
    fdr: float = 0.1
    base_rollouts: int = 8
    low: float = 0.2
    high: float = 0.8
    completions_per_problem: int = 1
    explore_first: int = 4
    explore_batch: int = 4
    explore_most: int = 20
    ambiguity: float = 0.1
    nominate: float = 0.5
    confirm: int = 32

    def __post_init__(self) -> None:
        _require(0 < self.tau < 1, f"tau is {self.tau}; expected between 0 and 1")
        _require(
            0 <= self.delta0 < self.tau,
            f"delta0 is {self.delta0}; expected at least 0 and below tau ({self.tau})",
        )
        _require(0 < self.fdr < 1, f"fdr is {self.fdr}; expected between 0 and 1")
        _require(
            0 <= self.low < self.high <= 1,
            f"low, high are {self.low}, {self.high}; expected 0 <= low < high <= 1",
        )
        _require(0 < self.ambiguity < 1, f"ambiguity is {self.ambiguity}; expected between 0 and 1")
        _require(0 < self.nominate < 1, f"nominate is {self.nominate}; expected between 0 and 1")
        for name in ("base_rollouts", "completions_per_problem", "explore_first", "explore_batch", "confirm"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        _require(
            self.completions_per_problem <= self.base_rollouts,
            f"completions_per_problem ({self.completions_per_problem}) exceeds base_rollouts ({self.base_rollouts})",
        )


def as_json(**groups: SamplerSettings | SearchSettings) -> dict[str, JsonValue]:
    """The settings as flat `group.name` keys, for the ledger and for a vector file's metadata."""
    return {
        f"{group}.{name}": value
        for group, settings in groups.items()
        for name, value in dataclasses.asdict(settings).items()
    }


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SearchError(message)
