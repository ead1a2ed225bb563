"""How much a run wants in all, as far as its ledger can tell by now."""

from __future__ import annotations

from dataclasses import dataclass

from steering_pts.ledger import LedgerReader


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
    # In sentences, next to everything is a candidate; in tokens, what the screen leaves.
    in_tokens = settings.get("search.unit") != "sentence"
    searched = sum(
        not in_tokens or min(score.probabilities, default=1.0) <= 1 - tau for score in ledger.scores()
    )
    nominees = ledger.nominees()
    return Wanted(
        completions=round(base * len(ledger.problems())),
        explore=int(budget * share * searched),
        confirm=sum(nominee.on_path + nominee.alternative for nominee in nominees),
    )
