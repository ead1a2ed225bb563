"""Where a rule acts: a `Selector` resolved against a prompt's length.

Rows are numbered from the prompt's start: prompt position i is row i, step j is row P - 1 + j of a prompt of P tokens
(see `steering_spec.steering` for the convention). The last prompt row belongs to both phases, so a clause of either
phase matches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steering_spec import Clause, Phase, Positions, Selector


@dataclass(frozen=True, slots=True)
class RowSet:
    """Explicit rows and half-open windows of rows, `end=None` being open."""

    rows: frozenset[int]
    windows: tuple[tuple[int, int | None], ...]

    def __contains__(self, row: int) -> bool:
        return row in self.rows or any(
            start <= row and (end is None or row < end) for start, end in self.windows
        )

    def first(self, at_least: int = 0) -> int | None:
        """The first row of the set that is not before `at_least`, or None."""
        starts = [row for row in self.rows if row >= at_least]
        starts += [max(start, at_least) for start, end in self.windows if end is None or end > at_least]
        return min(starts, default=None)


@dataclass(frozen=True, slots=True)
class ResolvedSelector:
    """A selector against one prompt: which rows its prompt clauses and its step clauses choose."""

    prompt_length: int
    prompt: RowSet
    generation: RowSet
    excluded: RowSet

    def selects_prompt_row(self, row: int) -> bool:
        """Whether a prompt clause chooses this row; triggers have no say in it."""
        return row in self.prompt and row not in self.excluded

    def selects_step(self, step: int) -> bool:
        """Whether a generation clause chooses this step."""
        row = self.prompt_length - 1 + step
        return row in self.generation and row not in self.excluded

    def first_row(self) -> int | None:
        """The first row that may be steered, or None; a lower bound, since exclusions are not looked into."""
        starts = [first for first in (self.prompt.first(), self.generation.first()) if first is not None]
        return min(starts, default=None)


def resolve_selector(selector: Selector, prompt_length: int) -> ResolvedSelector:
    """Resolves negative prompt positions and turns steps into rows.

    Args:
        selector: One that `steering_spec.request_violations` found nothing wrong with.
        prompt_length: Tokens of the prompt, at least 1.
    """
    of_phase = {phase: [c for c in selector.include if c.phase is phase] for phase in Phase}
    return ResolvedSelector(
        prompt_length=prompt_length,
        prompt=_rows(of_phase[Phase.PROMPT], prompt_length),
        generation=_rows(of_phase[Phase.GENERATION], prompt_length),
        excluded=_rows(selector.exclude, prompt_length),
    )


def _rows(clauses: Sequence[Clause], prompt_length: int) -> RowSet:
    rows: set[int] = set()
    windows: list[tuple[int, int | None]] = []
    for clause in clauses:
        in_prompt = clause.phase is Phase.PROMPT
        offset = 0 if in_prompt else prompt_length - 1
        if isinstance(clause.predicate, Positions):
            rows.update(
                position + prompt_length if in_prompt and position < 0 else position + offset
                for position in clause.predicate.positions
            )
            continue
        start, end = (0, None) if clause.predicate is None else (clause.predicate.start, clause.predicate.end)
        if in_prompt:
            start = start + prompt_length if start < 0 else start
            end = prompt_length if end is None else end + prompt_length if end < 0 else end
            windows.append((start, min(end, prompt_length)))
        else:
            windows.append((start + offset, None if end is None else end + offset))
    return RowSet(frozenset(rows), tuple(windows))
