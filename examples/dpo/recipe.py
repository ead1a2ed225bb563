"""The comparison: pivotal pairs beside whole completions, at the same number of training tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.dpo.measuring import Measuring, rate
from examples.dpo.pairs import Pair, up_to
from examples.dpo.training import FineTuned, Recipe, fine_tune
from steering_pts.data import Problem
from steering_pts.statistics import Estimate, paired_bootstrap_lift

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, and on what.

    Attributes:
        recipe: How models are fine-tuned.
        learning_rates: Those that compete on validation problems.
        tokens: Training tokens of each arm.
        seeds: Trainings of each arm, which differ in the pairs that come first.
        validation: Problems on which each arm's learning rate is chosen.
        test: Problems that nothing was chosen on.
        samples: Completions of each test problem and training.
    """

    recipe: Recipe
    learning_rates: Sequence[float]
    tokens: int
    seeds: Sequence[int]
    validation: Sequence[Problem]
    test: Sequence[Problem]
    samples: int


@dataclass(frozen=True, slots=True, eq=False)
class ArmOutcome:
    """What an arm came to.

    Attributes:
        pairs: Different pairs that it could learn from.
        tokens: Training tokens, the mean over its trainings.
        answer_tokens: Those of them in the loss.
        learning_rate: The one with the highest success on validation problems.
        validation: Success there, by learning rate.
        solved: By test problem, its samples over all trainings.
        model: The model of the first training.
    """

    pairs: int
    tokens: float
    answer_tokens: float
    learning_rate: float
    validation: Mapping[float, float]
    solved: dict[str, list[bool]]
    model: Any

    @property
    def success(self) -> float:
        """Success on test problems."""
        return rate(self.solved)


def run_arm(plan: Plan, measuring: Measuring, pairs: Sequence[Pair], say: Say) -> ArmOutcome:
    """Chooses the arm's learning rate on validation problems, and measures it on test problems."""
    data = {seed: up_to(pairs, plan.tokens, seed) for seed in plan.seeds}
    trained: dict[tuple[float, int], FineTuned] = {}
    validation: dict[float, float] = {}
    for learning_rate in plan.learning_rates:
        rates = []
        for seed in plan.seeds:
            tuned = fine_tune(plan.recipe, data[seed], learning_rate, seed)
            trained[learning_rate, seed] = tuned
            rates.append(rate(measuring.solved(tuned.model, plan.validation)))
        validation[learning_rate] = sum(rates) / len(rates)
        say(f"  learning rate {learning_rate:g}: {validation[learning_rate]:.3f} on validation problems")
    best = max(validation, key=lambda one: (validation[one], -one))
    solved: dict[str, list[bool]] = {problem.id: [] for problem in plan.test}
    for seed in plan.seeds:
        found = measuring.solved(trained[best, seed].model, plan.test, plan.samples)
        for problem, samples in found.items():
            solved[problem] += samples
    used = [pair for seed in plan.seeds for pair in data[seed]]
    return ArmOutcome(
        pairs=len(pairs),
        tokens=sum(pair.tokens for pair in used) / len(plan.seeds),
        answer_tokens=sum(pair.answer_tokens for pair in used) / len(plan.seeds),
        learning_rate=best,
        validation=validation,
        solved=solved,
        model=trained[best, plan.seeds[0]].model,
    )


def difference(before: dict[str, list[bool]], after: dict[str, list[bool]], seed: int) -> Estimate:
    """How much more of each problem's samples are correct after than before, with its interval over problems.

    Both have the same random numbers for the same sample of a problem; where one has fewer samples, they are repeated.
    """
    pairs = {
        problem: [
            float(right) - float(left)
            for left, right in zip(itertools.cycle(before[problem]), samples, strict=False)
        ]
        for problem, samples in after.items()
    }
    return paired_bootstrap_lift(pairs, seed=seed)
