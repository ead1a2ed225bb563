"""Which method, block and strength: candidates compete on validation problems, steered at pivotal positions.

A successive halving: every candidate at every multiple of its own norm on a part of the problems, the best of them on
all. Seeds are shared, so candidates are compared on the same random choices. A group's winner is kept only when the
lower end of its lift's interval is above zero; everything else is reported and dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.schema import HeldOutLift
from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.progress import RunProgress
from steering_pts.rollouts import EngineRollouts
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.statistics import paired_lift
from steering_pts.vectors.building import at_block
from steering_pts.vectors.candidates import Candidates
from steering_spec import (
    ContextTrigger,
    FinishReason,
    GenerationSpec,
    PromptIds,
    SteeringRule,
    SteeringSpec,
)

MULTIPLES = {
    "paired_difference": (1.0, 2.0, 4.0),
    "context_difference": (1.0, 2.0, 4.0),
    "pca": (1.0, 2.0, 4.0),
    "optimised": (0.5, 1.0, 2.0),
}
_FIRST_ROUND = 64
_SURVIVORS = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """A method's direction at a block with its strength in residual units, and the lift that it showed."""

    method: str
    block: int
    strength: float
    lift: HeldOutLift


@dataclass(frozen=True, slots=True)
class Validation:
    """Measures success on validation problems, one completion each, with seeds shared by everything compared.

    Attributes:
        model: The model that serves the completions.
        source: Runs them.
        oracle: Judges them.
        problems: Validation problems, none of which the vectors were made from.
        prompts: Their prompt ids, from `steering_pts.prompts.encode_prompts`.
        sampler: How completions are drawn.
        seed: Seed of the run.
        progress: Shows how far it is.
    """

    model: SteeredModel
    source: EngineRollouts
    oracle: Oracle
    problems: Sequence[Problem]
    prompts: Mapping[str, tuple[int, ...]]
    sampler: SamplerSettings
    seed: int
    progress: RunProgress

    def successes(self, steerings: Sequence[SteeringSpec | None], count: int, phase: str) -> list[list[bool]]:
        """For each steering, which of the first `count` problems were solved. Censored counts as not solved."""
        problems = self.problems[:count]
        specs = [self._spec(problem, steering) for steering in steerings for problem in problems]
        with self.progress.phase(phase, len(specs)) as advance:
            completions = self.source.complete(specs, advance)
        pairs = list(zip(list(problems) * len(steerings), completions, strict=True))
        judgements = judge_all(
            self.oracle,
            [
                (problem, completion.text, completion.finish_reason is FinishReason.LENGTH)
                for problem, completion in pairs
                if completion is not None
            ],
        )
        verdicts = iter(judgement.verdict for judgement in judgements)
        # A steering so strong that it breaks the logits solves nothing, and loses.
        solved = [completion is not None and next(verdicts) is Verdict.CORRECT for _, completion in pairs]
        return [solved[i * len(problems) : (i + 1) * len(problems)] for i in range(len(steerings))]

    def _spec(self, problem: Problem, steering: SteeringSpec | None) -> GenerationSpec:
        prompt_ids = self.prompts[problem.id]
        # As in discovery, a completion gets what room the context leaves.
        room = self.model.info.facts.max_context_tokens - len(prompt_ids)
        sampling = self.sampler.params(derive_seed(self.seed, problem.id, "validation"), room)
        return GenerationSpec(PromptIds(prompt_ids), sampling, steering)


def choose(validation: Validation, candidates: Candidates) -> Choice:
    """The best direction and strength of a group's candidates."""
    vectors = {method: candidates.load(method) for method in candidates.files}
    trials = [
        (method, block, multiple * norm)
        for method, vector in vectors.items()
        for block, norm in sorted(vector.metadata.calibrated_strength.items())
        for multiple in MULTIPLES[method]
    ]
    name = candidates.name
    rules = []
    for method, block, strength in trials:
        data = encode_vector(at_block(vectors[method], block, strength, name))
        # Named after its content: a name that is taken can only be taken by the same trial.
        trial_name = f"trial-{hashlib.sha256(data).hexdigest()[:32]}"
        validation.model.vectors.load(trial_name, data)
        rules.append(SteeringSpec((SteeringRule(trial_name, trigger=ContextTrigger()),)))
    first = min(_FIRST_ROUND, len(validation.problems))
    rates = [sum(solved) for solved in validation.successes(rules, first, f"{name}: first round")]
    # Of equals the weaker one goes on: it does less to the model.
    order = sorted(range(len(trials)), key=lambda i: (-rates[i], trials[i][2], i))[:_SURVIVORS]
    everything = len(validation.problems)
    unsteered, *finals = validation.successes(
        [None, *(rules[i] for i in order)], everything, f"{name}: final round"
    )
    best = max(range(len(finals)), key=lambda i: (sum(finals[i]), -i))
    return Choice(*trials[order[best]], measure_lift(validation, unsteered, finals[best]))


def measure_lift(validation: Validation, unsteered: Sequence[bool], steered: Sequence[bool]) -> HeldOutLift:
    """The paired difference of success rates with its bootstrap interval over problems."""
    lift = paired_lift([problem.id for problem in validation.problems], unsteered, steered, validation.seed)
    return HeldOutLift(
        split="validation",
        problems=len(validation.problems),
        unsteered=sum(unsteered) / len(unsteered),
        steered=sum(steered) / len(steered),
        lift=lift.value,
        low95=lift.low,
        high95=lift.high,
    )
