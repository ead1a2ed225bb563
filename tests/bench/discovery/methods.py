"""The methods that are compared, by name, each a function of traces and a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from steering_pts.settings import SearchSettings
from tests.bench.discovery.baselines import Split, bisect, scan
from tests.bench.discovery.findings import Searched
from tests.bench.discovery.simulation import search_planted
from tests.bench.discovery.traces import PlantedTrace

Method = Callable[[Sequence[PlantedTrace], int], list[Searched]]

DEFAULTS: Final = SearchSettings()


def _bisection(
    traces: Sequence[PlantedTrace], seed: int, rollouts: int | None, split: Split
) -> list[Searched]:
    return [
        bisect(trace, rollouts, split, DEFAULTS, np.random.default_rng([seed, number]))
        for number, trace in enumerate(traces)
    ]


def _scan(traces: Sequence[PlantedTrace], seed: int, rollouts: int) -> list[Searched]:
    return [
        scan(trace, rollouts, DEFAULTS, np.random.default_rng([seed, number]))
        for number, trace in enumerate(traces)
    ]


def _pivotal(traces: Sequence[PlantedTrace], seed: int, budget: int) -> list[Searched]:
    return search_planted(traces, SearchSettings(budget=budget), seed)


METHODS: Final[Mapping[str, Method]] = {
    "bisection_10": partial(_bisection, rollouts=10, split="length"),
    "bisection_20": partial(_bisection, rollouts=20, split="length"),
    "bisection_50": partial(_bisection, rollouts=50, split="length"),
    "phi4_split_50": partial(_bisection, rollouts=50, split="surprisal"),
    "bisection_exact": partial(_bisection, rollouts=None, split="length"),
    "scan_64": partial(_scan, rollouts=64),
    "pivotal_small": partial(_pivotal, budget=230),
    "pivotal_medium": partial(_pivotal, budget=480),
    "pivotal": partial(_pivotal, budget=DEFAULTS.budget),
}
