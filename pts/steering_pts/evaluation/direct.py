"""A few arms measured in one go, one completion for each problem, with nothing kept: what a demonstration needs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from steering_client import AsyncClient
from steering_pts.concurrency import map_concurrently
from steering_pts.data import Problem
from steering_pts.evaluation.arms import Arm
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.progress import Advance, RunProgress
from steering_pts.prompts import question_prompt
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.statistics import Estimate, paired_lift
from steering_spec import (
    Completion,
    FinishReason,
)

_IN_FLIGHT = 128


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm came to: its completions and which problems they solved, in the order of the problems."""

    arm: Arm
    completions: tuple[Completion, ...]
    solved: tuple[bool, ...]

    @property
    def success(self) -> float:
        """Share of problems solved; what was cut off counts as not solved."""
        return sum(self.solved) / len(self.solved)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures arms on the same problems with the same seeds, one completion for each problem and arm.

    Attributes:
        target: `host:port` of the server.
        problems: Problems that nothing was made from or chosen on.
        oracle: Judges the completions.
        sampler: How completions are drawn.
        seed: Seed of the run; an arm's completion of a problem has a seed that depends on the problem alone.
        raw: Whether questions are plain prompts.
        progress: Shows how far it is.
    """

    target: str
    problems: Sequence[Problem]
    oracle: Oracle
    sampler: SamplerSettings
    seed: int
    raw: bool
    progress: RunProgress

    def measure(self, arms: Sequence[Arm]) -> list[ArmResult]:
        """All arms, in the order given.

        Raises:
            SteeringError: The server can't be reached or refuses a request.
        """
        with self.progress.phase("evaluating", len(arms) * len(self.problems)) as advance:
            by_arm = asyncio.run(self._complete(arms, advance))
        return [
            ArmResult(arm, tuple(completions), tuple(self._solved(completions)))
            for arm, completions in zip(arms, by_arm, strict=True)
        ]

    async def _complete(self, arms: Sequence[Arm], advance: Advance) -> list[list[Completion]]:
        async with AsyncClient(self.target) as client:

            async def one(pair: tuple[Arm, Problem]) -> Completion:
                arm, problem = pair
                completion = await client.generate(
                    question_prompt(problem, raw=self.raw),
                    sampling=self.sampler.params(derive_seed(self.seed, problem.id, "evaluation")),
                    steering=arm.steering,
                    steering_trace=True,
                )
                advance(len(completion.tokens))
                return completion

            pairs = list(itertools.product(arms, self.problems))
            completions = await map_concurrently(one, pairs, _IN_FLIGHT)
        count = len(self.problems)
        return [completions[row * count : (row + 1) * count] for row in range(len(arms))]

    def _solved(self, completions: Sequence[Completion]) -> list[bool]:
        judgements = judge_all(
            self.oracle,
            [
                (problem, completion.text, completion.finish_reason is FinishReason.LENGTH)
                for problem, completion in zip(self.problems, completions, strict=True)
            ],
        )
        return [judgement.verdict is Verdict.CORRECT for judgement in judgements]

    def lift(self, baseline: ArmResult, arm: ArmResult) -> Estimate:
        """The paired difference of success rates with its 95 % bootstrap interval over problems."""
        return paired_lift([problem.id for problem in self.problems], baseline.solved, arm.solved, self.seed)
