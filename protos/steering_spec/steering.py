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
class TokenSet:
    """Rows whose own token is one of these ids.

    A prompt row's own token is the prompt token at its position. The own token of step j is the one just before token
    j: generated token j - 1, and the last prompt token for step 0. So in the generation phase a rule acts at the step
    that follows such a token.
    """

    ids: tuple[int, ...]


Predicate = Positions | Window | TokenSet


@dataclass(frozen=True, slots=True)
class Clause:
    """One predicate over the rows of one phase; without a predicate, the whole phase."""

    phase: Phase
    predicate: Predicate | None = None


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
    def after_tokens(cls, *ids: int) -> Selector:
        """The steps that follow one of these tokens, be it generated or the prompt's last."""
        return cls((Clause(Phase.GENERATION, TokenSet(ids)),))

    @classmethod
    def prompt_positions(cls, *positions: int) -> Selector:
        """The given prompt positions; -1 is the last prompt token."""
        return cls((Clause(Phase.PROMPT, Positions(positions)),))

    @classmethod
    def prompt_window(cls, start: int = 0, end: int | None = None) -> Selector:
        """Prompt positions `start <= i < end`."""
        return cls((Clause(Phase.PROMPT, Window(start, end)),))

    @classmethod
    def prompt_tokens(cls, *ids: int) -> Selector:
        """The prompt positions that hold one of these tokens."""
        return cls((Clause(Phase.PROMPT, TokenSet(ids)),))

    def excluding(self, *others: Selector) -> Selector:
        """This selector without the rows that the others include."""
        return Selector(
            self.include, self.exclude + tuple(clause for one in others for clause in one.include)
        )

    def __or__(self, other: Selector) -> Selector:
        """The rows that either includes, without those that either excludes."""
        return Selector(self.include + other.include, self.exclude + other.exclude)


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
class ProbeTrigger:
    """When: the linear probe of the vector file says of this very step that it is pivotal.

    The probability is `sigmoid(w . h + b)`, h being resid_post of the probe's block at the step's row, before any rule
    acts on it there (rules at earlier blocks have acted).

    Attributes:
        layer: Block that is read, at or before the first steered one; None means the best of the file's probes there.
        threshold: Least probability that fires, in (0, 1); None means the file's own.
        hold_steps: Steps that the rule stays on once fired.
        cooldown_steps: Steps after the held ones before it may fire again.
        max_firings: Times that it may fire in one completion; None means no limit.
    """

    layer: int | None = None
    threshold: float | None = None
    hold_steps: int = 1
    cooldown_steps: int = 0
    max_firings: int | None = None


@dataclass(frozen=True, slots=True)
class SimilarityTrigger:
    """When: the residual stream of this very step is close to a recorded pivot's.

    What is compared is the cosine of h and the nearest centroid of the vector file, h being resid_post of the block at
    the step's row, before any rule acts on it there (rules at earlier blocks have acted).

    Attributes:
        layer: Block that is read, at or before the first steered one; None means the last of the file's there.
        min_cosine: Least cosine that fires, in [-1, 1]; None means the file's own.
        hold_steps: Steps that the rule stays on once fired.
        cooldown_steps: Steps after the held ones before it may fire again.
        max_firings: Times that it may fire in one completion; None means no limit.
    """

    layer: int | None = None
    min_cosine: float | None = None
    hold_steps: int = 1
    cooldown_steps: int = 0
    max_firings: int | None = None


Trigger = ContextTrigger | ProbeTrigger | SimilarityTrigger


@dataclass(frozen=True, slots=True)
class Add:
    """`h + s * d`: direction d, times strength s in residual units, added to the residual stream h.

    Attributes:
        norm_preserved: The result is rescaled to the norm that h had.
    """

    norm_preserved: bool = False


@dataclass(frozen=True, slots=True)
class Ablate:
    """`h - a * (h . d) * d`: the coordinate of h along the direction d is taken away.

    The rule's strength is a, no multiple of the calibrated one: 1 takes all of the coordinate, 0.5 half of it.
    """


@dataclass(frozen=True, slots=True)
class Clamp:
    """`h + a * (clip(h . d, min, max) - h . d) * d`: the coordinate of h along d is bounded.

    The rule's strength is a, no multiple of the calibrated one: 1 bounds the coordinate, 0.5 goes half the way.

    Attributes:
        min: Least coordinate in residual units; None means unbounded below.
        max: Largest coordinate in residual units; None means unbounded above.
    """

    min: float | None = None
    max: float | None = None


Operation = Add | Ablate | Clamp


@dataclass(frozen=True, slots=True)
class SteeringRule:
    """One vector applied by one operation.

    Attributes:
        vector: Name, or `name@sha256` to insist on one exact file. A leading `vectors/` is allowed.
        strength: For `Add`, a multiplier of the calibrated strength: 1 as calibrated, -1 opposite. For `Ablate` and
            `Clamp`, how much of the operation is done: 1 all of it. 0 is off.
        layers: Blocks, 0-based; empty means every block of the vector file.
        operation: What is done to a selected row.
        selector: Where.
        trigger: When, on top of where; None means always.
    """

    vector: str
    strength: float = 1.0
    layers: tuple[int, ...] = ()
    operation: Operation = Add()
    selector: Selector = field(default_factory=Selector.every_step)
    trigger: Trigger | None = None


class ConflictPolicy(Enum):
    """What happens when several rules act on the same row of the same block.

    SEQUENTIAL: they act one after the other in their order, clamps last. FIRST: the first of them takes the row.
    REJECT: a request whose rules could ever meet is refused.
    """

    SEQUENTIAL = "sequential"
    FIRST = "first"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """Rules in order, and what happens where several act on the same row of the same block."""

    rules: tuple[SteeringRule, ...]
    conflict_policy: ConflictPolicy = ConflictPolicy.SEQUENTIAL
