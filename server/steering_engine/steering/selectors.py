"""Where a rule acts: a `Selector` resolved against a prompt.

Rows are numbered from the prompt's start: prompt position i is row i, step j is row P - 1 + j of a prompt of P tokens
(see `steering_spec.steering` for the convention). The last prompt row belongs to both phases, so a clause of either
phase matches it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steering_spec import Clause, Phase, Positions, Selector, TokenSet
from steering_spec.intervals import Intervals, Span

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows by their numbers, and rows by their own token.

    Attributes:
        numbers: Rows by their numbers.
        tokens: Own tokens of rows; they count from `tokens_from` on.
        tokens_from: First row whose own token is looked at.
    """

    numbers: Intervals
    tokens: frozenset[int] = frozenset()
    tokens_from: int = 0

    def contains(self, row: int, token: int) -> bool:
        """Whether a row with this own token is in the set."""
        return row in self.numbers or (token in self.tokens and row >= self.tokens_from)

    def bounds(self) -> Iterator[int]:
        """All rows that may be in the set while the row before is not, or the other way round, tokens aside."""
        return (int(bound) for span in self.numbers.spans for bound in span if math.isfinite(bound))

    def first(self) -> int | None:
        """The first row that may be in the set, or None."""
        starts = [int(start) for start, _ in self.numbers.spans[:1]]
        if self.tokens:
            starts.append(self.tokens_from)
        return min(starts, default=None)


@dataclass(frozen=True, slots=True)
class ResolvedSelector:
    """A selector against one prompt: which rows its prompt clauses and its step clauses choose.

    Attributes:
        prompt_length: Tokens of the prompt.
        prompt: Rows that prompt clauses name.
        generation: Rows that generation clauses name.
        excluded: Rows that are not chosen, whatever names them.
        changes: Rows at which generation clauses may begin or cease to choose, ascending; tokens aside.
    """

    prompt_length: int
    prompt: RowSet
    generation: RowSet
    excluded: RowSet
    changes: tuple[int, ...]

    def selects_prompt_row(self, row: int, token: int = _NO_TOKEN) -> bool:
        """Whether a prompt clause chooses this row; triggers have no say in it.

        `token` is the row's own one. It decides nothing but whether the row of step 0 is excluded by it.
        """
        return self.prompt.contains(row, _NO_TOKEN) and not self.excluded.contains(row, token)

    def selects_step(self, step: int, token: int = _NO_TOKEN) -> bool:
        """Whether a generation clause chooses this step, whose own token is `token` (the one just before)."""
        row = self.prompt_length - 1 + step
        return self.generation.contains(row, token) and not self.excluded.contains(row, token)

    def same_until(self, step: int) -> float:
        """The first step after this one of which a generation clause may say something else; infinity if none."""
        if self.generation.tokens or self.excluded.tokens:
            return step + 1
        place = bisect_right(self.changes, self.prompt_length - 1 + step)
        return self.changes[place] - (self.prompt_length - 1) if place < len(self.changes) else math.inf

    def first_row(self) -> int | None:
        """The first row that may be steered, or None; a lower bound, since exclusions are not looked into."""
        starts = [first for first in (self.prompt.first(), self.generation.first()) if first is not None]
        return min(starts, default=None)


def resolve_selector(selector: Selector, prompt_ids: Sequence[int]) -> ResolvedSelector:
    """Resolves negative prompt positions and tokens of the prompt, and turns steps into rows.

    Args:
        selector: One that `steering_spec.request_violations` found nothing wrong with.
        prompt_ids: Tokens of the prompt, at least one.
    """
    of_phase = {phase: [c for c in selector.include if c.phase is phase] for phase in Phase}
    generation = _rows(of_phase[Phase.GENERATION], prompt_ids)
    excluded = _rows(selector.exclude, prompt_ids)
    return ResolvedSelector(
        prompt_length=len(prompt_ids),
        prompt=_rows(of_phase[Phase.PROMPT], prompt_ids),
        generation=generation,
        excluded=excluded,
        changes=tuple(sorted({*generation.bounds(), *excluded.bounds()})),
    )


def _rows(clauses: Sequence[Clause], prompt_ids: Sequence[int]) -> RowSet:
    length = len(prompt_ids)
    spans: list[Span] = []
    tokens: set[int] = set()
    for clause in clauses:
        in_prompt = clause.phase is Phase.PROMPT
        offset = 0 if in_prompt else length - 1
        predicate = clause.predicate
        if isinstance(predicate, Positions):
            rows = (
                position + length if in_prompt and position < 0 else position + offset
                for position in predicate.positions
            )
            spans.extend((row, row + 1) for row in rows)
        elif isinstance(predicate, TokenSet) and in_prompt:
            wanted = frozenset(predicate.ids)
            spans.extend((row, row + 1) for row, token in enumerate(prompt_ids) if token in wanted)
        elif isinstance(predicate, TokenSet):
            tokens.update(predicate.ids)
        else:
            start, end = (0, None) if predicate is None else (predicate.start, predicate.end)
            if in_prompt:
                start = start + length if start < 0 else start
                end = length if end is None else end + length if end < 0 else end
                spans.append((start, min(end, length)))
            else:
                spans.append((start + offset, math.inf if end is None else end + offset))
    return RowSet(Intervals.of(spans), frozenset(tokens), length - 1)
