"""How a request is steered: rules that say what, where and when. Plain values; `admission` judges them.

The words are those of docs/architecture.md. The convention that decides every off-by-one: **step j** is the forward
row that *predicts* generated token j. Step 0 is the row of the last prompt token (prompt position -1), step j >= 1 is
the row of generated token j - 1. A rule at step j changes token j and nothing before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Phase(Enum):
    """Phase of a row: of the prompt, by prompt position, or of the generation, by step."""

    PROMPT = "prompt"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True)
class Positions:
    """Explicit prompt positions (negative ones count from the prompt's end) or steps."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Half-open window `[start, end)`; `end=None` is open. Negative prompt bounds count from the prompt's end."""

    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Clause:
    """One predicate over the rows of one phase; without a predicate, the whole phase."""

    phase: Phase
    predicate: Positions | Window | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """Where: rows matched by any `include` clause and by no `exclude` clause."""

    include: tuple[Clause, ...] = (Clause(Phase.GENERATION),)
    exclude: tuple[Clause, ...] = ()

    @classmethod
    def every_step(cls) -> Selector:
        """Every step of the generation (the default)."""
        return cls()

    @classmethod
    def steps(cls, *steps: int) -> Selector:
        """The given steps, 0-based."""
        return cls((Clause(Phase.GENERATION, Positions(steps)),))

    @classmethod
    def step_window(cls, start: int, end: int | None = None) -> Selector:
        """Steps `start <= j < end`."""
        return cls((Clause(Phase.GENERATION, Window(start, end)),))

    @classmethod
    def prompt_positions(cls, *positions: int) -> Selector:
        """The given prompt positions; -1 is the last prompt token."""
        return cls((Clause(Phase.PROMPT, Positions(positions)),))

    @classmethod
    def prompt_window(cls, start: int = 0, end: int | None = None) -> Selector:
        """Prompt positions `start <= i < end`."""
        return cls((Clause(Phase.PROMPT, Window(start, end)),))


@dataclass(frozen=True, slots=True)
class ContextTrigger:
    """When: the token ids so far end with a recorded pivot context of the vector file.

    Attributes:
        min_match_tokens: Shortest match; None means the file's own.
        hold_steps: Steps that the rule stays on once fired.
        cooldown_steps: Steps after the held ones before it may fire again.
        max_firings: Times that it may fire in one completion; None means no limit.
    """

    min_match_tokens: int | None = None
    hold_steps: int = 1
    cooldown_steps: int = 0
    max_firings: int | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """The operation `h + s * d`: direction d, times strength s in residual units, added to the residual stream h."""


@dataclass(frozen=True, slots=True)
class SteeringRule:
    """One vector applied by one operation.

    Attributes:
        vector: Name, or `name@sha256` to insist on one exact file. A leading `vectors/` is allowed.
        strength: Multiplier of the calibrated strength: 1 as calibrated, 0 off, -1 opposite.
        layers: Blocks, 0-based; empty means every block of the vector file.
        operation: What is done to a selected row.
        selector: Where.
        trigger: When, on top of where; None means always.
    """

    vector: str
    strength: float = 1.0
    layers: tuple[int, ...] = ()
    operation: Add = Add()
    selector: Selector = field(default_factory=Selector.every_step)
    trigger: ContextTrigger | None = None


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """Rules in order; where several select the same row of the same block, they act one after the other."""

    rules: tuple[SteeringRule, ...]
