"""An oracle's verdicts against labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from statsmodels.stats.proportion import proportion_confint

from steering_pts.oracles.base import Verdict

_C, _I = Verdict.CORRECT, Verdict.INCORRECT


@dataclass(frozen=True, slots=True)
class Rate:
    """A share `count / of` with its Wilson 95 % interval."""

    count: int
    of: int
    value: float
    low95: float
    high95: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each verdict met each label; `counts[verdict, label]`."""

    counts: Counter[tuple[Verdict, Verdict]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Verdict, Verdict]]) -> Confusion:
        """Counts (verdict, label) pairs."""
        return cls(Counter(pairs))

    @property
    def judged(self) -> int:
        """Pairs in which neither side is censored: what the rates are about."""
        return sum(self.counts[verdict, label] for verdict in (_C, _I) for label in (_C, _I))

    @property
    def accuracy(self) -> Rate | None:
        """Share of the judged on which verdict and label agree; None where there are none."""
        return _rate(self.counts[_C, _C] + self.counts[_I, _I], self.judged)

    @property
    def false_positives(self) -> Rate | None:
        """Share of the judged labelled incorrect that the oracle calls correct; None where there are none."""
        return _rate(self.counts[_C, _I], self.counts[_C, _I] + self.counts[_I, _I])

    @property
    def false_negatives(self) -> Rate | None:
        """Share of the judged labelled correct that the oracle calls incorrect; None where there are none."""
        return _rate(self.counts[_I, _C], self.counts[_I, _C] + self.counts[_C, _C])


def _rate(count: int, of: int) -> Rate | None:
    if not of:
        return None
    low, high = proportion_confint(count, of, method="wilson")
    return Rate(count, of, count / of, float(low), float(high))
