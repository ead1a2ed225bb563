"""What the exclude clauses of a selector take away, and whether anything is left of an include clause.

Only what holds whatever the tokens are is judged: explicit rows and windows exclude rows, token sets exclude tokens,
and a token set is hidden where all its rows or all its tokens are. A row has one token of its own whichever phase names
it, and the last prompt row, being step 0, is excluded by clauses of both phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from steering_spec.clause_rows import (
    FROM_THE_BEGINNING,
    FROM_THE_END,
    Frame,
    at_least,
    at_most,
    frame_of,
    union,
)
from steering_spec.intervals import Intervals
from steering_spec.steering import Clause, Phase, TokenSet


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What the exclude clauses of one selector take away.

    Attributes:
        views: The rows that are excluded, numbered by each frame in which they can be judged.
        prompt_tokens: Tokens that are excluded in the prompt.
        generation_tokens: Tokens that are excluded at steps.
        max_steps: Steps that there can be; None when that isn't known.
    """

    views: tuple[tuple[Frame, Intervals], ...]
    prompt_tokens: frozenset[int]
    generation_tokens: frozenset[int]
    max_steps: int | None

    @classmethod
    def of(
        cls, clauses: Sequence[Clause], prompt_length: int | None = None, max_steps: int | None = None
    ) -> Exclusion:
        """What clauses exclude.

        Args:
            clauses: Exclude clauses that have no fault of their own.
            prompt_length: Tokens of the prompt; None judges what holds for every length.
            max_steps: Steps that there can be; None when that isn't known.
        """
        frames = (FROM_THE_END, FROM_THE_BEGINNING) if prompt_length is None else (frame_of(prompt_length),)
        of_rows = without_tokens(clauses)
        return cls(
            tuple((frame, union(at_least(clause, frame) for clause in of_rows)) for frame in frames),
            tokens_of(clauses, Phase.PROMPT),
            tokens_of(clauses, Phase.GENERATION),
            max_steps,
        )

    def hides(self, clause: Clause) -> bool:
        """Whether an include clause without a fault of its own can select nothing."""
        return any(self._hides(clause, frame, excluded) for frame, excluded in self.views)

    def _hides(self, clause: Clause, frame: Frame, excluded: Intervals) -> bool:
        named = at_most(clause, frame)
        if frame.end is None:
            return excluded.covers(named)
        last = frame.end - 1
        if self.max_steps is not None:
            named = named.within(-inf, last + self.max_steps)
        if not isinstance(clause.predicate, TokenSet):
            return excluded.covers(named)
        tokens = frozenset(clause.predicate.ids)
        left_in_prompt, left_at_steps = tokens - self.prompt_tokens, tokens - self.generation_tokens
        areas = (
            (-inf, last, left_in_prompt),
            (last, last + 1, left_in_prompt & left_at_steps),
            (last + 1, inf, left_at_steps),
        )
        return all(not left or excluded.covers(named.within(start, end)) for start, end, left in areas)


def without_tokens(clauses: Iterable[Clause]) -> list[Clause]:
    """The clauses that name rows, whatever their tokens are."""
    return [clause for clause in clauses if not isinstance(clause.predicate, TokenSet)]


def tokens_of(clauses: Iterable[Clause], phase: Phase) -> frozenset[int]:
    """The ids of all token sets of one phase."""
    return frozenset(
        token_id
        for clause in clauses
        if clause.phase is phase and isinstance(clause.predicate, TokenSet)
        for token_id in clause.predicate.ids
    )
