"""Success of a model on problems, through the engine that also serves; each problem has its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from steering_engine.loading import LoadedModel
from steering_engine.model import EngineLimits, SteeredModel
from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import EngineRollouts, RolloutRequest
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings


@dataclass(frozen=True, slots=True)
class Measuring:
    """How success is measured: the same for every model, so that two can be compared problem by problem.

    Attributes:
        loaded: The model before training; its tokenizer is used for all.
        oracle: Judges the completions.
        sampler: How completions are drawn.
        seed: Decides the random numbers of each problem and sample.
    """

    loaded: LoadedModel
    oracle: Oracle
    sampler: SamplerSettings
    seed: int

    def solved(self, model: Any, problems: Sequence[Problem], samples: int = 1) -> dict[str, list[bool]]:
        """Which of each problem's samples are correct; one that was cut off is not.

        Args:
            model: A model of the same architecture as `loaded`.
            problems: The problems.
            samples: Completions of each.
        """
        steered = SteeredModel(replace(self.loaded, model=model), "fine-tuned", EngineLimits())
        prompts = encode_prompts(steered, problems, raw=False)
        drawn = [(problem, index) for problem in problems for index in range(samples)]
        with EngineRollouts(steered, self.sampler) as source:
            rollouts = source.sample(
                [
                    RolloutRequest(
                        prompts[problem.id],
                        self.sampler.max_tokens,
                        derive_seed(self.seed, problem.id, "dpo", index),
                    )
                    for problem, index in drawn
                ]
            )
        decode = self.loaded.tokenizer.decode
        judgements = judge_all(
            self.oracle,
            [
                (problem, str(decode(list(rollout.ids), skip_special_tokens=True)), rollout.truncated)
                for (problem, _), rollout in zip(drawn, rollouts, strict=True)
            ],
        )
        found: dict[str, list[bool]] = {problem.id: [] for problem in problems}
        for (problem, _), judgement in zip(drawn, judgements, strict=True):
            found[problem.id].append(judgement.verdict is Verdict.CORRECT)
        return found


def rate(solved: dict[str, list[bool]]) -> float:
    """The share of samples that are correct."""
    samples = [one for several in solved.values() for one in several]
    return sum(samples) / len(samples)
