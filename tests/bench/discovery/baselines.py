"""The methods that are in use, on planted traces: bisection, with either split, and a scan of every token.

Bisection estimates P(success) at both ends of a segment with n rollouts each, and halves it while they differ by tau;
a single token that is left is reported with the estimates that led there. Halving by length is what the public tool
does, halving by surprisal follows the Phi-4 technical report, section 4.3 (arXiv 2412.08905).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from steering_pts.settings import SearchSettings
from tests.bench.discovery.findings import Finding, Searched
from tests.bench.discovery.traces import PlantedTrace

Split = Literal["length", "surprisal"]

_ONE_SIDED_95 = 1.645
_ROUNDING = 1e-12  # estimates are multiples of 1/n, and so may tau be


def bisect(
    trace: PlantedTrace,
    rollouts: int | None,
    split: Split,
    settings: SearchSettings,
    rng: np.random.Generator,
) -> Searched:
    """Bisection with `rollouts` from every prefix that it looks at; None knows P(success) exactly, its ceiling.

    The verdict of the whole completion is known and costs nothing, which is generous to it.
    """
    length = len(trace.probabilities)
    known: dict[int, float] = {length: float(trace.values[length])}
    surprisal = np.concatenate([[0.0], np.cumsum(-np.log(trace.probabilities))])

    def value(prefix: int) -> float:
        if prefix not in known:
            true = float(trace.values[prefix])
            known[prefix] = true if rollouts is None else rng.binomial(rollouts, true) / rollouts
        return known[prefix]

    def middle(start: int, end: int) -> int:
        if split == "length":
            return start + (end - start) // 2
        half = (surprisal[start] + surprisal[end]) / 2
        return int(np.clip(np.searchsorted(surprisal, half), start + 1, end - 1))

    found: list[Finding] = []
    segments = [(0, length)]
    while segments:
        start, end = segments.pop()
        effect = value(end) - value(start)
        if abs(effect) < settings.tau - _ROUNDING:
            continue
        if end - start == 1:
            found.append(Finding(start, effect))
        else:
            half = middle(start, end)
            segments += [(half, end), (start, half)]
    return Searched(
        effects=dict(enumerate(trace.effects.tolist())),
        reported=tuple(found),
        rollouts=None if rollouts is None else rollouts * (len(known) - 1),
        tokens=None if rollouts is None else rollouts * sum(length - prefix for prefix in known),
    )


def scan(trace: PlantedTrace, rollouts: int, settings: SearchSettings, rng: np.random.Generator) -> Searched:
    """`rollouts` from every prefix; a token is reported when its effect is above delta0 at one-sided level 0.05."""
    length = len(trace.probabilities)
    rates = np.append(rng.binomial(rollouts, trace.values[:-1]) / rollouts, trace.values[-1])
    effects = np.diff(rates)
    variances = rates * (1 - rates) / rollouts
    reach = _ONE_SIDED_95 * np.sqrt(variances[1:] + variances[:-1])
    return Searched(
        effects=dict(enumerate(trace.effects.tolist())),
        reported=tuple(
            Finding(int(k), float(effects[k]))
            for k in np.flatnonzero(np.abs(effects) > settings.delta0 + reach)
        ),
        rollouts=rollouts * length,
        tokens=rollouts * length * (length + 1) // 2,
    )
