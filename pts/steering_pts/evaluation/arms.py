"""The arms of an evaluation: what is done to a completion, from nothing to forcing the better token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from steering_pts.errors import EvaluationError
from steering_pts.evaluation.served import ServedVector
from steering_spec import SteeringRule, SteeringSpec
from steering_spec.limits import MAX_RULES


class ArmKind(StrEnum):
    """What an arm is there for.

    STRENGTH_0 has to be the unsteered arm token for token. FLIPPED steers the other way. RANDOM has random directions
    of the same norm at the same blocks and triggers. SHUFFLED_STEPS steers each completion at as many other steps,
    drawn at random. FORCED_ALTERNATIVE puts the better token in the place of a worse one, without steering, wherever a
    run knows which is better. EVERY_STEP has no trigger.
    """

    UNSTEERED = "unsteered"
    STEERED = "steered"
    STRENGTH_0 = "strength_0"
    FLIPPED = "flipped"
    RANDOM = "random"
    SHUFFLED_STEPS = "shuffled_steps"
    FORCED_ALTERNATIVE = "forced_alternative"
    EVERY_STEP = "every_step"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of steering that is measured.

    Attributes:
        name: What it is called; no two arms of an evaluation are called alike.
        steering: What is asked of the server for every completion; None is unsteered. Arms that differ from completion
            to completion (shuffled steps, forced alternatives) have none.
        kind: What it is there for.
        samples: Completions of each problem.
    """

    name: str
    steering: SteeringSpec | None
    kind: ArmKind = ArmKind.STEERED
    samples: int = 1


def steered(vectors: Sequence[ServedVector], scale: float = 1.0) -> SteeringSpec:
    """All vectors, each by its own trigger.

    Args:
        vectors: The vectors.
        scale: Multiplies the strength of each: 1 as it is, 0 off, -1 opposite.
    """
    return SteeringSpec(
        tuple(SteeringRule(one.reference, one.strength * scale, trigger=one.trigger) for one in vectors)
    )


def every_step(vectors: Sequence[ServedVector]) -> SteeringSpec:
    """All vectors at every step."""
    return SteeringSpec(tuple(SteeringRule(one.reference, one.strength) for one in vectors))


def check_count(vectors: Sequence[ServedVector]) -> None:
    """Makes sure that one request can name all vectors.

    Raises:
        EvaluationError: There are none, or too many.
    """
    if not vectors:
        raise EvaluationError("there are no vectors to evaluate")
    if len(vectors) > MAX_RULES:
        raise EvaluationError(
            f"{len(vectors)} vectors; a request has at most {MAX_RULES}, so evaluate fewer of them together"
        )
