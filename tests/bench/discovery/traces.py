"""Planted traces: completions whose value curve is known exactly, so what a search finds can be held against it.

A trace has, for every token k, its probability pi_k under the sampler, the value V after it, and A_k, the rate of
success when another token comes in its place. They are drawn from the last token to the first, and
V_before = pi V_after + (1 - pi) A holds by construction. *Forks* are tokens that were not nearly certain.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steering_pts.search import Trace

Array = NDArray[np.float64]
Effects = Literal["planted", "opposing", "heavy_tailed"]

UNDECIDED: Final = (0.2, 0.8)
"""P(success) at the prompt of every trace, as of every problem that a run keeps."""

_ROWS: Final = 512  # traces drawn at a time, most of which are rejected
_MOST_FORK: Final = 0.92
_MARGIN: Final = 6  # tokens at either end that are no planted pivots, in traces of the usual length


@dataclass(frozen=True, slots=True)
class Scenario:
    """How traces are drawn.

    Attributes:
        name: Seeds the draws, besides the seed.
        effects: `planted`: `pivots` effects of 0.25 to 0.5 of either sign, all others below 0.06. `opposing`: two equal
            and opposite ones in the first half, and one in the second that settles the verdict. `heavy_tailed`: the
            rate of success after another token is anything at 15 % of the forks.
        fork_share: Share of tokens that are forks.
        pivots: How many effects are planted.
        length: Tokens.
        candidates: The positions of the forks, all of them below 1 - tau, rather than a share.
    """

    name: str
    effects: Effects = "planted"
    fork_share: float = 0.15
    pivots: int = 3
    length: int = 200
    candidates: tuple[int, ...] | None = None


SCENARIOS: Final = (
    Scenario("planted_15"),
    Scenario("planted_35", fork_share=0.35),
    Scenario("opposing", "opposing"),
    Scenario("heavy_tailed", "heavy_tailed"),
    Scenario("null", pivots=0),
)


def scenario_like(candidates: Sequence[int], length: int, pivots: int) -> Scenario:
    """Planted traces with a completion's length, positions of candidates and number of pivots.

    Raises:
        ValueError: More pivots than candidates, or candidates that are no tokens.
    """
    if not 1 <= pivots <= len(candidates):
        raise ValueError(
            f"{pivots} pivots among {len(candidates)} candidates; expected 1 to {len(candidates)}"
        )
    if not 0 <= min(candidates) <= max(candidates) < length:
        raise ValueError(f"candidates at {list(candidates)}; expected positions below {length}")
    name = f"like {length} {pivots} {list(candidates)}"
    return Scenario(name, pivots=pivots, length=length, candidates=tuple(candidates))


@dataclass(frozen=True, slots=True, eq=False)
class PlantedTrace:
    """One trace of T tokens.

    Attributes:
        id: Unique within a scenario.
        probabilities: Pi of each token, `[T]`.
        alternatives: A of each token, `[T]`.
        values: V before each token and after the last one, `[T + 1]`; the last one is 0 or 1.
    """

    id: str
    probabilities: Array
    alternatives: Array
    values: Array

    @property
    def effects(self) -> Array:
        """What each token changes of P(success), `[T]`."""
        return np.diff(self.values)

    def to_search(self) -> Trace:
        """What a search may know of it."""
        return Trace(self.id, tuple(self.probabilities.tolist()), succeeded=bool(self.values[-1] == 1))


def draw_traces(scenario: Scenario, count: int, seed: int, prefix: str = "trace") -> list[PlantedTrace]:
    """Draws undecided traces of a scenario; the same ones for the same scenario and seed. `prefix` begins their ids."""
    rng = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
    kept: list[PlantedTrace] = []
    while len(kept) < count:
        probabilities, alternatives, values, sound = _draw_batch(scenario, rng)
        sound &= (values[:, 0] >= UNDECIDED[0]) & (values[:, 0] <= UNDECIDED[1])
        kept += [
            PlantedTrace(
                f"{prefix}-{len(kept) + number:05}", probabilities[row], alternatives[row], values[row]
            )
            for number, row in enumerate(np.flatnonzero(sound))
        ]
    return kept[:count]


def _draw_batch(
    scenario: Scenario, rng: np.random.Generator
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Probabilities, alternatives, values, and which rows could be made as the scenario wants them."""
    forks = _forks(scenario, rng)
    rows, length = forks.shape
    most = _MOST_FORK if scenario.candidates is None else 0.8
    nearly_sure = 1 - np.clip(rng.exponential(0.004, forks.shape), 0, 0.05)
    probabilities = np.where(forks, rng.uniform(0.08, most, forks.shape), nearly_sure)
    alternatives = np.empty(forks.shape)
    values = np.empty((rows, length + 1))
    values[:, -1] = rng.random(rows) < 0.5
    planted, sound = _planted_effects(scenario, forks, values[:, -1] == 1, rng)
    drifts = _Drifts(
        small=np.clip(rng.normal(0, 0.02, forks.shape), -0.06, 0.06),
        anything=rng.random(forks.shape),
        is_anything=forks & (rng.random(forks.shape) < 0.15),
        shift=np.where(forks, rng.normal(0, 0.08, forks.shape), rng.normal(0, 0.15, forks.shape)),
    )
    place = rng.random(forks.shape)
    for k in range(length - 1, -1, -1):
        after = values[:, k + 1]
        pi = probabilities[:, k]
        rate = np.clip(after + drifts.shift[:, k], 0, 1)
        if scenario.effects == "heavy_tailed":
            rate = np.where(drifts.is_anything[:, k], drifts.anything[:, k], rate)
        else:
            rate = np.where(forks[:, k], np.clip(after - drifts.small[:, k] / (1 - pi), 0, 1), rate)
        is_planted = planted[:, k] != 0
        before = after - planted[:, k]
        # The likeliest that a token of this effect can be, for A must be a rate.
        most_likely = np.minimum(before / np.maximum(after, 1e-9), (1 - before) / np.maximum(1 - after, 1e-9))
        sound &= ~is_planted | ((before >= 0.03) & (before <= 0.97) & (most_likely >= 0.12))
        chosen = 0.1 + place[:, k] * (np.clip(0.95 * most_likely, 0.1, 0.75) - 0.1)
        probabilities[:, k] = pi = np.where(is_planted, chosen, pi)
        rate = np.where(is_planted, np.clip((before - pi * after) / (1 - pi), 0, 1), rate)
        alternatives[:, k] = rate
        values[:, k] = pi * after + (1 - pi) * rate
    return probabilities, alternatives, values, sound


class _Drifts(NamedTuple):
    """Draws for the tokens that are not planted, `[rows, T]` each."""

    small: Array
    anything: Array
    is_anything: NDArray[np.bool_]
    shift: Array


def _forks(scenario: Scenario, rng: np.random.Generator) -> NDArray[np.bool_]:
    if scenario.candidates is None:
        return rng.random((_ROWS, scenario.length)) < scenario.fork_share
    return np.tile(np.isin(np.arange(scenario.length), scenario.candidates), (_ROWS, 1))


def _planted_effects(
    scenario: Scenario, forks: NDArray[np.bool_], succeeded: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """The effects to plant, 0 for none, `[rows, T]`, and which rows have enough forks for them."""
    rows, length = forks.shape
    effects = np.zeros(forks.shape)
    if scenario.effects == "heavy_tailed" or scenario.pivots == 0:
        return effects, np.ones(rows, dtype=bool)
    places = np.arange(length)
    exact = scenario.candidates is not None
    eligible = forks if exact else forks & (places >= _MARGIN) & (places < length - _MARGIN + 1)
    sound = eligible.sum(axis=1) >= (scenario.pivots if exact else 6)
    all_rows = np.arange(rows)
    signs = rng.choice([-1.0, 1.0], (rows, scenario.pivots))
    if scenario.effects == "planted":
        for number, chosen in enumerate(_choose(eligible, scenario.pivots, rng).T):
            effects[all_rows, chosen] = signs[:, number] * rng.uniform(0.25, 0.5, rows)
        return effects, sound
    early, late = eligible & (places < length // 2), eligible & (places >= length // 2)
    sound &= (early.sum(axis=1) >= 2) & (late.sum(axis=1) >= 1)
    first, second = _choose(early, 2, rng).T
    size = signs[:, 0] * rng.uniform(0.25, 0.45, rows)
    effects[all_rows, first], effects[all_rows, second] = size, -size
    effects[all_rows, _choose(late, 1, rng)[:, 0]] = np.where(succeeded, 1, -1) * rng.uniform(0.3, 0.5, rows)
    return effects, sound


def _choose(eligible: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """`count` eligible places of each row, `[rows, count]`; others where there are too few."""
    return np.where(eligible, rng.random(eligible.shape), 2.0).argsort(axis=1)[:, :count]
