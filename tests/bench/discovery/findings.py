"""What a method says about one completion, beside what is true of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """An effect that a method reports at a position; `interval` is None where the method has none."""

    position: int
    estimate: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """One completion that was searched.

    Attributes:
        effects: The true effect by position; positions that are missing have none of size tau.
        reported: What the method reports as pivotal.
        rollouts: Rollouts that it cost; None for a method that can't be had.
        tokens: Tokens generated for them.
        confirmed: Everything that was confirmed with fresh rollouts, reported or not.
    """

    effects: Mapping[int, float]
    reported: tuple[Finding, ...]
    rollouts: int | None
    tokens: int | None
    confirmed: tuple[Finding, ...] = ()
