"""As many other steps: what is steered there, and whether it came to as many."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from steering_pts.evaluation.samples import Sample
from steering_pts.evaluation.served import ServedVector
from steering_spec import Selector, SteeringRule, SteeringSpec

_TOLD_FROM: Final = 0.05  # share of the steps that is missing


def shuffled_steering(
    vectors: Sequence[ServedVector], plain: Sample, on_pivots: Sample, seed: int
) -> SteeringSpec | None:
    """Steers at as many other steps as a steered completion was steered at, each vector as often as it was.

    A vector without a trigger has no other steps, and acts at every step as it did.

    Args:
        vectors: The vectors, in the order of their rules.
        plain: The unsteered completion, whose steps are chosen from.
        on_pivots: The steered completion.
        seed: Of the choice.

    Returns:
        None where nothing was steered, or there are no other steps.
    """
    triggered = {rule for rule, vector in enumerate(vectors) if vector.trigger is not None}
    acted = {act.step for act in on_pivots.acts if act.rule_index in triggered}
    other = [step for step in range(len(plain.ids)) if step not in acted]
    generator = random.Random(seed)
    rules = []
    for rule_index, vector in enumerate(vectors):
        if rule_index not in triggered:
            rules.append(SteeringRule(vector.reference, vector.strength))
            continue
        count = len({act.step for act in on_pivots.acts if act.rule_index == rule_index})
        steps = sorted(generator.sample(other, min(count, len(other))))
        if steps:
            selector = Selector.steps(*steps)
            rules.append(SteeringRule(vector.reference, vector.strength, selector=selector))
    return SteeringSpec(tuple(rules)) if rules else None


@dataclass(slots=True)
class StepCounts:
    """Counts the steps at which vectors with a trigger acted, each vector by itself.

    Attributes:
        vectors: The vectors, in the order of the rules of steered completions.
        completions: Completions counted.
        steered: Steps in steered completions.
        shuffled: Steps in those that were steered at other steps.
    """

    vectors: Sequence[ServedVector]
    completions: int = 0
    steered: int = 0
    shuffled: int = 0

    def add_steered(self, sample: Sample) -> None:
        """Counts a completion that is steered by the triggers."""
        self.completions += 1
        self.steered += self._count(sample, [vector.reference for vector in self.vectors])

    def add_shuffled(self, sample: Sample, steering: SteeringSpec | None) -> None:
        """Counts its counterpart, with the steering that it was made with."""
        rules = () if steering is None else steering.rules
        self.shuffled += self._count(sample, [rule.vector for rule in rules])

    def _count(self, sample: Sample, rules: Sequence[str]) -> int:
        triggered = {vector.reference for vector in self.vectors if vector.trigger is not None}
        return len({(act.rule_index, act.step) for act in sample.acts if rules[act.rule_index] in triggered})

    def remarks(self) -> list[str]:
        """A sentence where the other steps are fewer by more than one in twenty."""
        if self.shuffled >= (1 - _TOLD_FROM) * self.steered:
            return []
        mean, other = self.steered / self.completions, self.shuffled / self.completions
        sentence = (
            f"shuffled_steps: {other:.2f} steps of a completion were steered on average, where the triggers steered "
            f"{mean:.2f}, since completions have too few other steps or end before they come to them; this arm shows "
            "less than as many would"
        )
        return [sentence]
