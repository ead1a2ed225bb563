"""Makes the dense reference of pivotal steps: `python -m steering_pts.demo.steps` (about twenty minutes on two cores).

One completion of every problem, none of which a search or a choice has seen. A step whose most likely token alone
certifies that it is not pivotal gets no rollouts; at every other step each likely token is put in its place, and so is
what all other tokens are together, and hundreds of rollouts go on from there. What comes out is the decision variance
of every step with an interval; steps whose interval holds tau^2 get more rollouts, and are told apart if it still does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.progress import track

from steering_engine.alias import resolve_model
from steering_engine.model import SteeredModel
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.demo.step_reference import (
    PATH,
    ReferenceBranch,
    ReferenceCompletion,
    ReferenceStep,
    StepReference,
    bundled_digest,
    save_reference,
)
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all, make_oracle
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import EngineRollouts, RolloutRequest
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.vectors.branches import Branches, branches_of
from steering_pts.watching import until_for

COMPLETIONS: Final = 120
ROLLOUTS: Final = 300
MORE_ROLLOUTS: Final = 1_500
SEED: Final = 29
TAU: Final = 0.2
LEAST: Final = 0.01
"""Tokens less likely than this are rolled out together."""
LEAST_REST: Final = 0.002
"""Together less likely than this, they can't matter and get no rollouts."""
SAMPLER: Final = SamplerSettings(max_tokens=64)  # the longest of 15,000 written solutions has 52 tokens


@dataclass(frozen=True, slots=True)
class ReferenceMaker:
    """The bundled model, and the oracle that judges what it writes."""

    model: SteeredModel
    source: EngineRollouts
    oracle: Oracle

    def completions(self, problems: Sequence[Problem]) -> list[ReferenceCompletion]:
        """One completion of each problem, with its branches at every step that may be pivotal; no rollouts yet."""
        prompts = encode_prompts(self.model, problems, raw=False)
        requests = [
            RolloutRequest(prompts[problem.id], SAMPLER.max_tokens, derive_seed(SEED, problem.id, "completion"))
            for problem in problems
        ]
        samples = self.source.sample(requests)
        pairs = [(request.prefix_ids, sample.ids) for request, sample in zip(requests, samples, strict=True)]
        scored = branches_of(self.model.loaded, pairs, SAMPLER, LEAST)
        return [
            ReferenceCompletion(
                problem_id=problem.id,
                question=problem.question,
                answer=problem.answer,
                form=problem.fields["form"],
                prompt_ids=prompt,
                ids=ids,
                steps=tuple(
                    ReferenceStep(position, _branches(own))
                    for position, own in enumerate(steps)
                    if own.largest_variance >= TAU**2
                ),
            )
            for problem, (prompt, ids), steps in zip(problems, pairs, scored, strict=True)
        ]

    def rolled_out(self, completion: ReferenceCompletion) -> ReferenceCompletion:
        """The same with rollouts of every branch, and more of them where the first leave it open."""
        steps = []
        for given in completion.steps:
            step = self._rolled_out(completion, given, 0, ROLLOUTS)
            if step.pivotal(TAU) is None:
                step = self._rolled_out(completion, step, ROLLOUTS, MORE_ROLLOUTS)
            steps.append(step)
        return replace(completion, steps=tuple(steps))

    def _rolled_out(
        self, completion: ReferenceCompletion, step: ReferenceStep, first: int, count: int
    ) -> ReferenceStep:
        named = tuple(branch.id for branch in step.branches if branch.id is not None)
        branches = []
        for branch in step.branches:
            given = completion.ids[: step.position] + (() if branch.id is None else (branch.id,))
            prefix = (*completion.prompt_ids, *given)
            problem = Problem(completion.problem_id, completion.question, completion.answer)
            requests = [
                RolloutRequest(
                    prefix_ids=prefix,
                    max_tokens=SAMPLER.max_tokens - len(given),
                    seed=derive_seed(
                        SEED, completion.problem_id, step.position, -1 if branch.id is None else branch.id, index
                    ),
                    banned_first_ids=named if branch.id is None else (),
                    until=until_for(self.oracle, problem, self._text(given)),
                )
                for index in range(first, first + count)
            ]
            judgements = judge_all(
                self.oracle,
                [
                    (problem, self._text((*given, *sample.ids)), sample.truncated)
                    for sample in self.source.sample(requests)
                ],
            )
            verdicts = [judgement.verdict for judgement in judgements]
            branches.append(branch.with_more(*(verdicts.count(verdict) for verdict in Verdict)))
        return replace(step, branches=tuple(branches))

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.model.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _branches(own: Branches) -> tuple[ReferenceBranch, ...]:
    named = [ReferenceBranch(id_, p) for id_, p in zip(own.ids, own.probabilities, strict=True)]
    return (*named, ReferenceBranch(None, own.rest)) if own.rest >= LEAST_REST else tuple(named)


def make_reference(count: int = COMPLETIONS) -> StepReference:
    """Samples, scores and rolls out."""
    problems = load_problems("demo:test", DataOptions(limit=count, shuffle_seed=SEED))
    model = SteeredModel.load(resolve_model("demo"), device="cpu")
    oracle = make_oracle("math")
    try:
        with EngineRollouts(model, SAMPLER) as source:
            maker = ReferenceMaker(model, source, oracle)
            completions = maker.completions(problems)
            done = tuple(maker.rolled_out(completion) for completion in track(completions, "rolling out"))
    finally:
        oracle.close()
    return StepReference(bundled_digest(), SAMPLER, TAU, LEAST, ROLLOUTS, MORE_ROLLOUTS, SEED, done)


def main() -> None:
    """Makes the reference and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=PATH, help="where the file goes")
    parser.add_argument("--completions", type=int, default=COMPLETIONS)
    arguments = parser.parse_args()
    save_reference(make_reference(arguments.completions), arguments.out)


if __name__ == "__main__":
    main()
