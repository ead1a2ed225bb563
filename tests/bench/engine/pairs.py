"""Two arms measured side by side: interleaved, in an order that alternates, after one round that warms both up."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Arm = Callable[[], Awaitable[float]]
"""Runs one batch and returns its tokens per second."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second of two arms, a pair of numbers for each run.

    Attributes:
        changed: Those of the arm with the thing that is measured.
        baseline: Those of the arm without it, parallel to `changed`.
    """

    changed: tuple[float, ...]
    baseline: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Changed over baseline, by run."""
        return [own / base for own, base in zip(self.changed, self.baseline, strict=True)]

    @property
    def summary(self) -> dict[str, float | int]:
        """Median, least and largest ratio, and the number of runs."""
        ratios = self.ratios
        return {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "runs": len(ratios),
        }


async def measure_pair(changed: Arm, baseline: Arm, runs: int) -> Speeds:
    """Measures both arms `runs` times, next to each other.

    The order alternates, so that neither a machine that gets slower nor what the one arm leaves in the caches for the
    other counts for one side only. A round before the first isn't counted.
    """
    speeds: list[tuple[float, float]] = []
    for number in range(runs + 1):
        if number % 2:
            own = await changed()
            base = await baseline()
        else:
            base = await baseline()
            own = await changed()
        if number:
            speeds.append((own, base))
    return Speeds(tuple(own for own, _ in speeds), tuple(base for _, base in speeds))
