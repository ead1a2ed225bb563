"""What an evaluation measures, and how."""

from __future__ import annotations

from dataclasses import dataclass

from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.settings import SamplerSettings
from steering_spec.limits import MAX_COMPLETIONS

DEFAULT_RANDOM_VECTORS = 20


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What an evaluation measures, and how.

    Attributes:
        sampler: How completions are drawn.
        seed: Decides every completion; those of the same problem and index have the same seed in all arms.
        raw: Questions are plain prompts, not messages for the chat template.
        samples: Completions of each problem in the main arms: unsteered, steered, forced alternatives.
        control_samples: Completions of each problem in the other arms.
        random_vectors: Random versions of the vectors, all of them together in one arm each.
        kinds: Kinds of arms; unsteered and steered are always measured.
        each: Every vector is measured alone as well.
        by: Fields of the problems by whose values the success is told apart.

    Raises:
        EvaluationError: Something can't be; all of it in one message.
    """

    sampler: SamplerSettings
    seed: int = 0
    raw: bool = False
    samples: int = 4
    control_samples: int = 1
    random_vectors: int = DEFAULT_RANDOM_VECTORS
    kinds: frozenset[ArmKind] = frozenset(ArmKind)
    each: bool = False
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.samples <= MAX_COMPLETIONS:
            faults.append(f"samples is {self.samples}; expected 1 to {MAX_COMPLETIONS}")
        if not 1 <= self.control_samples <= self.samples:
            faults.append(
                f"control samples are {self.control_samples}; expected 1 to {self.samples}, the samples of the main "
                "arms, which they are compared with"
            )
        if self.random_vectors < 0:
            faults.append(f"random vectors are {self.random_vectors}; expected 0 or more")
        if faults:
            raise EvaluationError("; ".join(faults))

    def samples_of(self, kind: ArmKind) -> int:
        """Completions of each problem in an arm of this kind."""
        main = (ArmKind.UNSTEERED, ArmKind.STEERED, ArmKind.FORCED_ALTERNATIVE)
        return self.samples if kind in main else self.control_samples
