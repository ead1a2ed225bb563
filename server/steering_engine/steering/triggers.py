"""When a rule acts: its condition, and how often, how long and how soon again it may fire.

A context trigger is decided before the forward, from the ids so far. What a probe or a similarity trigger reads is
known only inside the forward of the very step, so such a trigger asks a question, which the forward answers on the
device for itself; the answer comes back with the step's token, in time for the next decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steering_engine.steering.contexts import ContextIndex
from steering_spec import TriggerKind


@dataclass(frozen=True, slots=True)
class ContextCondition:
    """The newest ids are the end of a recorded context, at least so many of them."""

    index: ContextIndex
    min_match_tokens: int

    @property
    def kind(self) -> TriggerKind:
        """What acts tell of the trigger."""
        return TriggerKind.CONTEXT


@dataclass(frozen=True, slots=True)
class Reading:
    """What the forward compares with a threshold at the row of a step, before any rule acts on it at that block.

    The value is `max over slots of (h . w) + bias`, w being a row of the resident table; for a similarity, h is made a
    unit vector first.

    Attributes:
        kind: A probe or a similarity.
        block: Block whose output is read.
        slots: Slot of a probe's weight, or of each centroid, in the block's table.
        bias: The probe's; 0 for a similarity.
        threshold: Least value that fires: the logit of the probe's threshold, or the least cosine.
    """

    kind: TriggerKind
    block: int
    slots: tuple[int, ...]
    bias: float
    threshold: float


@dataclass(frozen=True, slots=True)
class CompiledTrigger:
    """A trigger with every default filled in."""

    condition: ContextCondition | Reading
    hold_steps: int
    cooldown_steps: int
    max_firings: int | None


class Verdict(NamedTuple):
    """What a trigger says of a step: the rule acts, does not, or (None) acts if the forward says so.

    `score` is what was measured where the trigger fires.
    """

    acts: bool | None
    score: float | None = None


OFF = Verdict(acts=False)
HELD = Verdict(acts=True)
ASK = Verdict(acts=None)


class TriggerState:
    """One trigger while one completion is generated; asked at most once per step, in order."""

    def __init__(self, trigger: CompiledTrigger) -> None:
        self._trigger = trigger
        self._firings = 0
        self._held_until = 0
        self._ready_from = 0

    def decide(self, step: int, selected: bool, history: Sequence[int]) -> Verdict:
        """Whether the rule acts at this step.

        A firing needs a step that the selector chose. While a firing is held, and during its cooldown, the condition
        is not looked at.

        Args:
            step: The step to decide.
            selected: Whether the rule's selector chose it.
            history: All ids before the token that this step predicts.
        """
        if step < self._held_until:
            return HELD if selected else OFF
        trigger = self._trigger
        if not selected or self.is_spent(step) or step < self._ready_from:
            return OFF
        if isinstance(trigger.condition, Reading):
            return ASK
        match = trigger.condition.index.longest_match(history)
        if match < trigger.condition.min_match_tokens:
            return OFF
        self.fire(step)
        return Verdict(acts=True, score=match)

    def is_spent(self, step: int) -> bool:
        """Whether the verdict is OFF at this step and at all that follow."""
        most = self._trigger.max_firings
        return most is not None and self._firings >= most and step >= self._held_until

    def fire(self, step: int) -> None:
        """Takes note of a firing; what asked a question is told of it so."""
        self._firings += 1
        self._held_until = step + self._trigger.hold_steps
        self._ready_from = self._held_until + self._trigger.cooldown_steps
