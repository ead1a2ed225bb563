"""Settings of a discovery run, checked once, and stored in the run's ledger as they are."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from steering_pts.errors import SearchError
from steering_spec import SamplingParams

JsonValue = str | int | float | bool | None
Unit = Literal["token", "sentence"]


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
        unit: What can be pivotal: every `token`, or every `sentence` (against another sentence in its place).
        tau: A token is pivotal when it moves P(success) by at least this much.
        delta0: Confirmation tests that the effect exceeds this; the guarantee is on effects below it.
        fdr: Level q of the Benjamini-Hochberg correction over all nominees of the run.
        base_rollouts: Completions sampled per problem, to see which problems are undecided.
        low: A problem is kept when P(low < P(success) < high) is at least one half.
        high: See `low`.
        completions_per_problem: Completions searched of each problem that is kept.
        budget: Rollouts for each completion of up to 70 candidates, for longer ones in proportion; on the average of
            the run, for the most ambiguous completions get more. It is never exceeded.
        explore_share: At most this share of the budget goes to exploration.
        explore_first: Alternatives of every candidate to begin with; 0 means half of exploration, 2 to 8 each.
        explore_batch: Rollouts that an ambiguous candidate gets at a time.
        explore_most: Most rollouts of one candidate; if it is ambiguous still, its confirmation settles it.
        explore_widest: At most so many candidates of a completion get rollouts in one round.
        ambiguity: A candidate whose P(|effect| >= tau) is this far from 0 and 1 is explored further.
        rho: Share of candidates whose effect may have any size, before anything is known.
        sd: Standard deviation of the effects of the other candidates.
        learn_prior: Learn `rho` and `sd` from the run itself.
        prior_weight: Candidates that the given `rho` and `sd` count for when they are learned.
        nominate: P(|effect| >= tau) from which a candidate is confirmed.
        power: Chance that confirmation should have of seeing an effect of the size that exploration expects.
        confirm_least: Fewest fresh rollouts on each side of a nominee.
        confirm_most: Most.
    """

    unit: Unit = "token"
    tau: float = 0.2
    delta0: float = 0.1
    fdr: float = 0.1
    base_rollouts: int = 8
    low: float = 0.2
    high: float = 0.8
    completions_per_problem: int = 1
    budget: int = 720
    explore_share: float = 0.65
    explore_first: int = 0
    explore_batch: int = 8
    explore_most: int = 192
    explore_widest: int = 4
    ambiguity: float = 0.02
    rho: float = 0.1
    sd: float = 0.04
    learn_prior: bool = True
    prior_weight: float = 100.0
    nominate: float = 0.5
    power: float = 0.99
    confirm_least: int = 12
    confirm_most: int = 96

    def __post_init__(self) -> None:
        _require(self.unit in get_args(Unit), f"unit is {self.unit!r}; expected token or sentence")
        _require(0 < self.tau < 1, f"tau is {self.tau}; expected between 0 and 1")
        _require(
            0 <= self.delta0 < self.tau,
            f"delta0 is {self.delta0}; expected at least 0 and below tau ({self.tau})",
        )
        _require(
            0 <= self.low < self.high <= 1,
            f"low, high are {self.low}, {self.high}; expected 0 <= low < high <= 1",
        )
        for name in ("fdr", "explore_share", "rho", "sd", "nominate", "power"):
            _require(
                0 < getattr(self, name) < 1, f"{name} is {getattr(self, name)}; expected between 0 and 1"
            )
        _require(0 < self.ambiguity < 0.5, f"ambiguity is {self.ambiguity}; expected between 0 and 0.5")
        _require(
            0 <= self.prior_weight < math.inf, f"prior_weight is {self.prior_weight}; expected at least 0"
        )
        _require(
            self.explore_first >= 0, f"explore_first is {self.explore_first}; expected 0 (automatic) or more"
        )
        searched = ("base_rollouts", "completions_per_problem", "budget", "confirm_least")
        explored = ("explore_batch", "explore_most", "explore_widest")
        for name in (*searched, *explored):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        _require(
            self.confirm_least <= self.confirm_most,
            f"confirm_most ({self.confirm_most}) is below confirm_least ({self.confirm_least})",
        )
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
