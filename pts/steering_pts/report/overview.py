"""The beginning of the page: what a run did, in numbers, and which tokens are its pivots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from steering_pts.ledger import LedgerSummary, PivotRecord
from steering_pts.oracles.base import Verdict
from steering_pts.report.texts import shown_token

_MOST_TOKENS: Final = 12


@dataclass(frozen=True, slots=True)
class Tile:
    """A number, what it counts, and a word about it."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class FrequentToken:
    """A pivotal token with how often it helped or harmed, and its mean effect."""

    token: str
    helped: int
    harmed: int
    mean_effect: float


def tiles(summary: LedgerSummary) -> list[Tile]:
    """The run in numbers."""
    completions = summary.completions
    judged = completions[Verdict.CORRECT] + completions[Verdict.INCORRECT]
    rate = f"{completions[Verdict.CORRECT] / judged:.0%} of those judged succeed" if judged else ""
    censored = completions[Verdict.CENSORED]
    stages = [
        f"{count:,} {name}"
        for stage, name in (("explore", "exploring"), ("confirm", "confirming"))
        if (count := summary.stages.get(stage, 0))
    ]
    tokens = summary.completion_tokens + summary.rollout_tokens
    return [
        Tile(f"{summary.pivots:,}", _noun(summary.pivots, "pivot"), f"of {summary.nominees:,} nominated"),
        Tile(f"{summary.problems:,}", _noun(summary.problems, "problem")),
        Tile(
            f"{sum(completions.values()):,}",
            _noun(sum(completions.values()), "completion"),
            rate + (f"; {censored:,} censored" if censored else ""),
        ),
        Tile(f"{summary.scored:,}", "searched", "of undecided problems"),
        Tile(
            f"{sum(summary.stages.values()):,}",
            _noun(sum(summary.stages.values()), "rollout"),
            ", ".join(stages),
        ),
        Tile(f"{tokens:,}", "tokens generated"),
    ]


def frequent_tokens(
    pivots: Sequence[PivotRecord], decode: Callable[[Sequence[int]], str]
) -> tuple[list[FrequentToken], int]:
    """The pivotal tokens seen most often, and how many others there are."""
    by_ids: dict[tuple[int, ...], list[float]] = {}
    for pivot in pivots:
        by_ids.setdefault(pivot.ids, []).append(pivot.delta)
    ordered = sorted(by_ids.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        FrequentToken(
            token=shown_token(decode(ids)),
            helped=sum(effect > 0 for effect in effects),
            harmed=sum(effect <= 0 for effect in effects),
            mean_effect=sum(effects) / len(effects),
        )
        for ids, effects in ordered[:_MOST_TOKENS]
    ]
    return rows, max(len(ordered) - _MOST_TOKENS, 0)


def _noun(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
