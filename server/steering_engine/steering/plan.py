"""What a request's rules do, compiled against its prompt: the part of steering that never changes while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from steering_engine.steering.ops import Effect
from steering_engine.steering.selectors import ResolvedSelector
from steering_engine.steering.triggers import CompiledTrigger, Reading
from steering_spec import SteeringSpec


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule against one prompt.

    Attributes:
        index: Index into the request's rules.
        layers: Blocks steered, ascending.
        slots: Slot of the direction in each block's table, parallel to `layers`.
        effects: What is done at each block, parallel to `layers`.
        selector: Where.
        trigger: When; None means always.
    """

    index: int
    layers: tuple[int, ...]
    slots: tuple[int, ...]
    effects: tuple[Effect, ...]
    selector: ResolvedSelector
    trigger: CompiledTrigger | None

    @property
    def reads(self) -> bool:
        """Whether the forward itself decides if the rule acts."""
        return self.trigger is not None and isinstance(self.trigger.condition, Reading)


@dataclass(frozen=True, slots=True)
class SteeringPlan:
    """All rules of a request that can change anything.

    Attributes:
        rules: Rules with a strength other than 0, in the order in which they act on a row.
        exclusive: The first rule that acts on a row of a block takes it; else all act, one after the other.
        prompt_length: Tokens of the prompt.
        applied: The canonical spec: defaults filled in, every vector with its digest.
        cache_salt: Digest of everything that decides how rows are steered. Cached rows may be shared only between
            requests with equal salts.
        first_row: The first row that may be steered; rows before it are those of an unsteered request.
    """

    rules: tuple[CompiledRule, ...]
    exclusive: bool
    prompt_length: int
    applied: SteeringSpec
    cache_salt: bytes
    first_row: int | None
