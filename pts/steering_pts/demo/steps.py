"""Makes the dense reference of pivotal steps: `python -m steering_pts.demo.steps` (about four minutes on one core).

One completion of every problem, none of which a search or a choice has seen. A step whose most likely token alone
certifies that it is not pivotal gets no rollouts; at every other step each likely token is put in its place, and so is
what all other tokens are together, and hundreds of rollouts go on from there. What comes out is the decision variance
of every step with an interval; steps whose interval holds tau^2 get more rollouts, and are told apart if it still does.

What it is to judge has no part in it: completions come from transformers' own `generate`, not from the engine, and
the problems' own rule says which are right, not an oracle.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from rich.progress import track

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel, load_model
from steering_pts.data import DataOptions, load_problems
from steering_pts.demo.problems import find_problem, is_correct
from steering_pts.demo.step_reference import (
    PATH,
    ReferenceBranch,
    ReferenceCompletion,
    ReferenceStep,
    StepReference,
    bundled_digest,
    save_reference,
)
from steering_pts.demo.tokenizer import prompt_text
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.vectors.branches import Branches, branches_of

COMPLETIONS: Final = 80
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
    """The bundled model on a CPU, whose rollouts are seeded one branch at a time."""

    loaded: LoadedModel

    def completions(self, count: int) -> list[ReferenceCompletion]:
        """One completion of each problem, with its branches at every step that may be pivotal; no rollouts yet."""
        problems = load_problems("demo:test", DataOptions(limit=count, shuffle_seed=SEED))
        pairs = []
        for problem in problems:
            prompt = tuple(self.loaded.tokenizer.encode(prompt_text(problem.question)))
            (ids,) = self.sample(prompt, SAMPLER.max_tokens, 1, derive_seed(SEED, problem.id, "completion"))
            pairs.append((prompt, ids))
        scored = branches_of(self.loaded, pairs, SAMPLER, LEAST)
        return [
            ReferenceCompletion(
                problem_id=problem.id,
                question=problem.question,
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
            step = self._rolled_out(completion, given, ROLLOUTS)
            if step.pivotal(TAU) is None:
                step = self._rolled_out(completion, step, MORE_ROLLOUTS)
            steps.append(step)
        return replace(completion, steps=tuple(steps))

    def _rolled_out(self, completion: ReferenceCompletion, step: ReferenceStep, count: int) -> ReferenceStep:
        found = find_problem(completion.question)
        assert found is not None  # noqa: S101 -- it is of the bundled data
        before = completion.ids[: step.position]
        named = [branch.id for branch in step.branches if branch.id is not None]
        branches = []
        for branch in step.branches:
            given = before if branch.id is None else (*before, branch.id)
            seed = derive_seed(
                SEED, completion.problem_id, step.position, -1 if branch.id is None else branch.id, count
            )
            samples = self.sample(
                (*completion.prompt_ids, *given),
                SAMPLER.max_tokens - len(given),
                count,
                seed,
                banned=named if branch.id is None else (),
            )
            right = sum(is_correct(found[0], self._text((*given, *sample))) for sample in samples)
            branches.append(branch.with_more(right, count - right))
        return replace(step, branches=tuple(branches))

    @torch.inference_mode()
    def sample(
        self, prefix: Sequence[int], most: int, count: int, seed: int, banned: Sequence[int] = ()
    ) -> list[tuple[int, ...]]:
        """What comes after a prefix at temperature 1, `count` times; its first token is none of the banned ones."""
        end = self.loaded.tokenizer.eos_token_id
        if prefix[-1] == end:
            return [()] * count
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows = torch.tensor([prefix] * count)
            if banned:
                logits = self.loaded.model(input_ids=rows[:1]).logits[0, -1].double()
                logits[list(banned)] = -torch.inf
                first = torch.multinomial(logits.softmax(-1), count, replacement=True)
                rows = torch.cat([rows, first[:, None]], dim=1)
            tokens = self.loaded.model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=SAMPLER.temperature,
                top_k=SAMPLER.top_k,
                top_p=SAMPLER.top_p,
                max_new_tokens=max(1, most - bool(banned)),
                pad_token_id=end,
                eos_token_id=end,
            )
        return [_ended(row[len(prefix) :].tolist(), end) for row in tokens]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _ended(ids: list[int], end: int) -> tuple[int, ...]:
    """Ids up to the one that ends the completion, and with it."""
    return tuple(ids[: ids.index(end) + 1] if end in ids else ids)


def _branches(own: Branches) -> tuple[ReferenceBranch, ...]:
    named = [ReferenceBranch(id_, p) for id_, p in zip(own.ids, own.probabilities, strict=True)]
    return (*named, ReferenceBranch(None, own.rest)) if own.rest >= LEAST_REST else tuple(named)


def make_reference(count: int = COMPLETIONS) -> StepReference:
    """Samples, scores and rolls out."""
    maker = ReferenceMaker(load_model(resolve_model("demo"), device="cpu"))
    completions = maker.completions(count)
    done = tuple(maker.rolled_out(completion) for completion in track(completions, "rolling out"))
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
