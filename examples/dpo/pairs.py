"""What the two arms train on: pivotal pairs, and whole completions of the same problems, up to the same tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steering_pts.interop.preference import pivotal_pairs
from steering_pts.ledger import LedgerReader
from steering_pts.oracles.base import Verdict


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference as token ids."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that a forward over both answers, each after its prompt, computes."""
        return 2 * len(self.prompt_ids) + self.answer_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens that are in the loss."""
        return len(self.chosen_ids) + len(self.rejected_ids)


def decision_pairs(ledger: LedgerReader) -> list[Pair]:
    """The better against the worse token of every pivot, after the prefix where the decision was taken."""
    return [Pair(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pivotal_pairs(ledger)]


def completion_pairs(ledger: LedgerReader) -> list[Pair]:
    """A correct against an incorrect completion of the same problem; each is used as often as the rarer kind allows.

    All completions that discovery sampled from the start take part, so the baseline learns from every problem that the
    search looked at, not only from those with pivots.
    """
    pairs = []
    for problem in ledger.problems():
        completions = ledger.completions(problem.id)
        right = [c for c in completions if c.verdict is Verdict.CORRECT]
        wrong = [c for c in completions if c.verdict is Verdict.INCORRECT]
        pairs += [Pair(good.prompt_ids, good.ids, bad.ids) for good, bad in zip(right, wrong, strict=False)]
    return pairs


def up_to(pairs: Sequence[Pair], tokens: int, seed: int) -> list[Pair]:
    """Pairs in a random order, again and again, until they have this many tokens; the last one may exceed it.

    Raises:
        ValueError: There are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs to train on")
    chosen: list[Pair] = []
    used = 0
    for pair in _epochs(pairs, random.Random(seed)):
        if used >= tokens:
            break
        chosen.append(pair)
        used += pair.tokens
    return chosen


def _epochs(pairs: Sequence[Pair], rng: random.Random) -> Iterator[Pair]:
    while True:
        yield from rng.sample(pairs, len(pairs))
