"""How good a method was: one row of figures over all completions that it searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.bench.discovery.findings import Finding, Searched

Row = dict[str, float | int | list[float] | None]

_RESAMPLES: Final = 2_000


def measure(searched: Sequence[Searched], tau: float, delta0: float, seconds: float) -> Row:
    """The row of a method.

    A true pivot has an effect of at least tau, and everything else that is reported is false. What can't be said is
    None: recall without pivots, bias without reports, coverage without intervals, cost where nothing can be had for it.

    Returns:
        `recall` and `fdr` over all completions, `recall_95` and `fdr_95` their bootstrap intervals over completions;
        `fdr_below_delta0` counts as false only what is below delta0; `false_per_trace`; `sign_errors` among the
        reported; `bias`, the mean overstatement of the reported; `coverage95` of all intervals that
        were confirmed and `coverage95_reported` of the reported's, which were selected by their own test;
        `nominee_recall`; the mean `rollouts` and `kilotokens` of a
        completion; `n_traces`; `seconds` in all.
    """
    pivots = np.array([sum(_is_pivot(own, position, tau) for position in own.effects) for own in searched])
    hits = np.array([sum(_is_pivot(own, f.position, tau) for f in own.reported) for own in searched])
    nominated = [sum(_is_pivot(own, f.position, tau) for f in own.confirmed) for own in searched]
    found = np.array([len(own.reported) for own in searched])
    below = sum(abs(_true(own, f)) < delta0 for own in searched for f in own.reported)
    has_confirmation = any(own.confirmed for own in searched)
    overstated = [
        np.sign(_true(own, f)) * (f.estimate - _true(own, f)) for own in searched for f in own.reported
    ]
    return {
        "recall": _ratio(hits.sum(), pivots.sum()),
        "recall_95": _interval(hits, pivots),
        "nominee_recall": _ratio(sum(nominated), pivots.sum()) if has_confirmation else None,
        "fdr": _ratio((found - hits).sum(), found.sum(), empty=0.0),
        "fdr_95": _interval(found - hits, found),
        "fdr_below_delta0": _ratio(below, found.sum(), empty=0.0),
        "false_per_trace": _ratio((found - hits).sum(), len(searched)),
        "sign_errors": sum(_true(own, f) * f.estimate < 0 for own in searched for f in own.reported),
        "bias": _mean(overstated),
        "coverage95": _coverage(searched, lambda own: own.confirmed),
        "coverage95_reported": _coverage(searched, lambda own: own.reported),
        "rollouts": _mean([own.rollouts for own in searched if own.rollouts is not None]),
        "kilotokens": _mean([own.tokens / 1000 for own in searched if own.tokens is not None]),
        "n_traces": len(searched),
        "seconds": seconds,
    }


def _true(own: Searched, finding: Finding) -> float:
    return own.effects.get(finding.position, 0.0)


def _is_pivot(own: Searched, position: int, tau: float) -> bool:
    return abs(own.effects.get(position, 0.0)) >= tau


def _ratio(part: float, whole: float, empty: float | None = None) -> float | None:
    return float(part) / float(whole) if whole else empty


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _coverage(searched: Sequence[Searched], chosen: Callable[[Searched], Sequence[Finding]]) -> float | None:
    covered = [
        f.interval[0] <= _true(own, f) <= f.interval[1]
        for own, f in chain.from_iterable(((own, f) for f in chosen(own)) for own in searched)
        if f.interval is not None
    ]
    return _mean(covered)


def _interval(part: NDArray[np.int64], whole: NDArray[np.int64]) -> list[float] | None:
    """95 % percentile interval of sum(part) / sum(whole), resampling completions."""
    if not whole.sum():
        return None
    rows = np.random.default_rng(0).integers(len(whole), size=(_RESAMPLES, len(whole)))
    parts, wholes = part[rows].sum(axis=1), whole[rows].sum(axis=1)
    low, high = np.quantile(parts / np.maximum(wholes, 1), [0.025, 0.975])
    return [float(low), float(high)]
