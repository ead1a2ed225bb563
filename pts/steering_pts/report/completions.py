"""The completions that the page shows: their text with the pivots marked, their curve, and what stood in each place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup
from statsmodels.stats.proportion import proportion_confint

from steering_pts.data import Problem
from steering_pts.ledger import CompletionRecord, LedgerReader, PivotRecord
from steering_pts.report.curves import RunCurves
from steering_pts.report.curves_chart import CurveMark, curve_chart
from steering_pts.report.texts import pieces, shown_token
from steering_pts.search.chain import Curve
from steering_pts.statistics import Estimate

MOST_DETAILED: Final = 12
"""Pivots of a completion whose alternatives are shown."""
_MOST_ALTERNATIVES: Final = 6
_MOST_TOKENS: Final = 900
_AROUND: Final = 40
"""Tokens kept on both sides of a pivot where a completion is too long to be shown whole."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a completion's text: plain, a pivot, or a number of tokens left out."""

    text: str
    pivot: int | None = None
    good: bool = False
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Alternative:
    """What stood in a pivot's place, and how often that led to success."""

    token: str
    successes: int
    rollouts: int
    rate: Estimate
    is_pair: bool


@dataclass(frozen=True, slots=True)
class ShownPivot:
    """A pivot in detail; `value` is P(success) after it."""

    number: int
    position: int
    token: str
    good: bool
    effect: Estimate
    probability: float
    q_value: float
    before: Estimate
    value: Estimate
    alternatives: tuple[Alternative, ...]
    more_alternatives: int


@dataclass(frozen=True, slots=True)
class ShownCompletion:
    """A completion as the page shows it."""

    anchor: str
    problem: Problem | None
    verdict: str
    extracted: str | None
    tokens: int
    pieces: tuple[Piece, ...]
    pivots: tuple[ShownPivot, ...]
    more_pivots: int
    start: Estimate
    chart: Markup


def order(searched: Sequence[CompletionRecord], pivots: Sequence[PivotRecord]) -> list[CompletionRecord]:
    """Completions in the order of the page: that with the strongest pivot first, those without any last."""
    strongest: dict[str, float] = {}
    for pivot in pivots:
        strongest[pivot.completion_id] = max(strongest.get(pivot.completion_id, 0.0), abs(pivot.delta))
    return sorted(searched, key=lambda c: (-strongest.get(c.id, 0.0), c.problem_id, c.index))


def shown_completions(
    ledger: LedgerReader, curves: RunCurves, pivots: Sequence[PivotRecord], decode: Decode, most: int
) -> Iterator[ShownCompletion]:
    """The first completions of the page's order."""
    problems = {problem.id: problem for problem in ledger.problems()}
    of_completion: dict[str, list[PivotRecord]] = {}
    for pivot in pivots:
        of_completion.setdefault(pivot.completion_id, []).append(pivot)
    for number, completion in enumerate(order(curves.searched, pivots)[:most], start=1):
        own = sorted(of_completion.get(completion.id, ()), key=lambda pivot: pivot.position)
        curve = curves.curve(completion)
        anchor = f"completion-{number}"
        marks = [
            CurveMark(index, pivot.position, pivot.position + len(pivot.ids), pivot.delta > 0)
            for index, pivot in enumerate(own, start=1)
        ]
        yield ShownCompletion(
            anchor=anchor,
            problem=problems.get(completion.problem_id),
            verdict=str(completion.verdict),
            extracted=completion.extracted,
            tokens=len(completion.ids),
            pieces=tuple(_marked(completion.ids, own, decode)),
            pivots=tuple(
                _pivot(index, pivot, curve, decode)
                for index, pivot in enumerate(own[:MOST_DETAILED], start=1)
            ),
            more_pivots=max(len(own) - MOST_DETAILED, 0),
            start=value_at(curve, 0),
            chart=curve_chart(anchor, curve, marks),
        )


def value_at(curve: Curve, position: int) -> Estimate:
    """P(success) before a position, with its interval; that of the last step before it, inside one."""
    at = max(index for index, place in enumerate(curve.positions) if place <= position)
    return Estimate(float(curve.mean[at]), float(curve.low[at]), float(curve.high[at]))


def _pivot(number: int, pivot: PivotRecord, curve: Curve, decode: Decode) -> ShownPivot:
    good = pivot.delta > 0
    pair = pivot.rejected_ids if good else pivot.chosen_ids
    alternatives = []
    taken = [count for count in pivot.alternatives if count.successes + count.failures]
    for count in taken[:_MOST_ALTERNATIVES]:
        rollouts = count.successes + count.failures
        low, high = proportion_confint(count.successes, rollouts, method="wilson")
        alternatives.append(
            Alternative(
                token=shown_token(decode(count.ids)),
                successes=count.successes,
                rollouts=rollouts,
                rate=Estimate(count.successes / rollouts, float(low), float(high)),
                is_pair=count.ids == pair,
            )
        )
    return ShownPivot(
        number=number,
        position=pivot.position,
        token=shown_token(decode(pivot.ids)),
        good=good,
        effect=Estimate(pivot.delta, pivot.low, pivot.high),
        probability=pivot.probability,
        q_value=pivot.q_value,
        before=value_at(curve, pivot.position),
        value=value_at(curve, pivot.position + len(pivot.ids)),
        alternatives=tuple(alternatives),
        more_alternatives=max(len(taken) - _MOST_ALTERNATIVES, 0),
    )


def _marked(ids: Sequence[int], pivots: Sequence[PivotRecord], decode: Decode) -> Iterator[Piece]:
    """The completion's text in pieces; of a long one what is far from every pivot is left out."""
    spans = [(pivot.position, pivot.position + len(pivot.ids)) for pivot in pivots]
    kept = kept_ranges(len(ids), spans)
    bounds = {bound for span in (*spans, *kept) for bound in span}
    cuts = sorted(bounds - {0})
    starts = [0, *cuts]
    texts = pieces(ids, cuts, decode)
    numbers = {span[0]: number for number, span in enumerate(spans)}
    for place, (start, text) in enumerate(zip(starts, texts, strict=True)):
        end = cuts[place] if place < len(cuts) else len(ids)
        if start == end:
            continue
        if start in numbers:
            number = numbers[start]
            yield Piece(text, number + 1, pivots[number].delta > 0)
        elif any(low <= start and end <= high for low, high in kept):
            yield Piece(text)
        else:
            yield Piece("", left_out=end - start)


def kept_ranges(length: int, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of so many tokens is shown: everything, or the beginning, the end, and the surroundings of pivots."""
    if length <= _MOST_TOKENS:
        return [(0, length)]
    wanted = [(0, 2 * _AROUND), (length - 2 * _AROUND, length)]
    wanted += [(max(start - _AROUND, 0), min(end + _AROUND, length)) for start, end in spans]
    kept: list[tuple[int, int]] = []
    for start, end in sorted(wanted):
        if kept and start <= kept[-1][1]:
            kept[-1] = kept[-1][0], max(kept[-1][1], end)
        else:
            kept.append((start, end))
    return kept
