"""How much a run wants in all, as far as its ledger can tell by now."""

from __future__ import annotations

from dataclasses import dataclass

from steering_pts.ledger import LedgerReader
from steering_pts.pivots import repeated_lengths
from steering_pts.search import candidates
from steering_pts.search.exploration import budget_for


@dataclass(frozen=True, slots=True)
class Wanted:
    """Completions and rollouts that a run asks for in all.

    Attributes:
        completions: Completions sampled from the prompts.
        explore: Rollouts that exploration may take at most; it ends when nothing is ambiguous any more.
        confirm: Fresh rollouts of all nominees; 0 until they are known.
    """

    completions: int
    explore: int
    confirm: int


def wanted_of(ledger: LedgerReader) -> Wanted:
    """What a run wants in all."""
    settings = ledger.settings()
    base, budget, share, tau = (
        float(str(settings.get(f"search.{name}", 0)))
        for name in ("base_rollouts", "budget", "explore_share", "tau")
    )
    counts = _searched(ledger, tau)
    # In sentences, next to everything is a candidate, and there are few; in tokens, what the screen leaves.
    if settings.get("search.unit") == "sentence":
        counts = [1] * len(counts)
    return Wanted(
        completions=round(base * len(ledger.problems())),
        explore=int(int(sum(budget_for(count, int(budget)) for count in counts)) * share),
        confirm=sum(nominee.on_path + nominee.alternative for nominee in ledger.nominees()),
    )


def _searched(ledger: LedgerReader, tau: float) -> list[int]:
    """How many candidates of its own each completion has that is searched."""
    probabilities = {score.completion_id: score.probabilities for score in ledger.scores()}
    repeated = repeated_lengths(c for c in ledger.completions() if c.id in probabilities)
    return [
        sum(position >= length for position in candidates(probabilities[completion_id], tau))
        for completion_id, length in repeated.items()
    ]
