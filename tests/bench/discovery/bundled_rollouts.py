"""Rollouts of the bundled model from prefixes of a completion, judged by the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steering_engine.model import SteeredModel
from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.rollouts import EngineRollouts, RolloutRequest
from tests.bench.discovery.reference_file import Counts, ReferenceCompletion


@dataclass(frozen=True, slots=True)
class Start:
    """Where a rollout begins: after the completion's first `given` tokens, and not with the next one if `leaves`."""

    completion: ReferenceCompletion
    given: int
    leaves: bool
    seed: int


@dataclass(frozen=True, slots=True)
class BundledRollouts:
    """The bundled model's engine, and the oracle that judges what it writes."""

    model: SteeredModel
    source: EngineRollouts
    oracle: Oracle
    max_tokens: int

    def judged(self, starts: Sequence[Start]) -> list[tuple[Verdict, int]]:
        """The verdict of each rollout, and how many tokens it generated."""
        requests = [
            RolloutRequest(
                prefix_ids=(*start.completion.prompt_ids, *start.completion.ids[: start.given]),
                max_tokens=self.max_tokens - start.given,
                seed=start.seed,
                banned_first_ids=(start.completion.ids[start.given],) if start.leaves else (),
            )
            for start in starts
        ]
        rollouts = self.source.sample(requests)
        judgements = judge_all(
            self.oracle,
            [
                (
                    Problem(start.completion.problem_id, start.completion.question, start.completion.answer),
                    self.text((*start.completion.ids[: start.given], *rollout.ids)),
                    rollout.truncated,
                )
                for start, rollout in zip(starts, rollouts, strict=True)
            ],
        )
        return [
            (judgement.verdict, len(rollout.ids))
            for judgement, rollout in zip(judgements, rollouts, strict=True)
        ]

    def counts(self, starts: Sequence[Start]) -> Counts:
        """How many rollouts came out which way."""
        verdicts = [verdict for verdict, _ in self.judged(starts)]
        return tuple(map(verdicts.count, (Verdict.CORRECT, Verdict.INCORRECT, Verdict.CENSORED)))

    def text(self, ids: Sequence[int]) -> str:
        """What an oracle reads."""
        text: str = self.model.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
