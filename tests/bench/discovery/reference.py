"""Makes the dense reference on the bundled model: `python -m tests.bench.discovery.reference` (about ten minutes).

20 completions of undecided problems, all forms and both verdicts, and for each of their candidates 1,000 rollouts with
another token in its place and 1,000 from the prefix that ends with it. The two sides share nothing with the search:
every rollout generates all that follows its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from rich.progress import track

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.demo.kinds import decision_kind
from steering_pts.demo.problems import FORMS, find_problem, opening
from steering_pts.oracles.base import Verdict
from steering_pts.oracles.registry import judge_all, make_oracle
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import EngineRollouts, RolloutRequest
from steering_pts.scoring import score_completions
from steering_pts.search import candidates
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.statistics import beta_posterior_between
from tests.bench.discovery.bundled_rollouts import BundledRollouts, Start
from tests.bench.discovery.reference_file import (
    Reference,
    ReferenceCandidate,
    ReferenceCompletion,
    bundled_digest,
    effect,
    save_reference,
)

COMPLETIONS: Final = 20
ROLLOUTS: Final = 1_000
SEED: Final = 5
SAMPLER: Final = SamplerSettings(max_tokens=64)  # the longest of 15,000 written solutions has 52 tokens

_PROBLEMS: Final = 240
_SEARCH: Final = SearchSettings()
_LIKELY: Final = 0.05


def make_reference() -> Reference:
    """Samples, chooses, scores and rolls out."""
    problems = load_problems("demo:train", DataOptions(limit=_PROBLEMS, shuffle_seed=SEED))
    model = SteeredModel.load(resolve_model("demo"), device="cpu")
    oracle = make_oracle("math")
    try:
        with EngineRollouts(model, SAMPLER) as source:
            rollouts = BundledRollouts(model, source, oracle, SAMPLER.max_tokens)
            chosen = _scored(model.loaded, _chosen(rollouts, _undecided(rollouts, problems)))
            completions = tuple(
                _with_effects(rollouts, completion) for completion in track(chosen, "rolling out")
            )
    finally:
        oracle.close()
    return Reference(bundled_digest(), SAMPLER, _SEARCH.tau, ROLLOUTS, SEED, completions)


# --- completions ------------------------------------------------------------------------------------------------------


def _undecided(rollouts: BundledRollouts, problems: Sequence[Problem]) -> list[ReferenceCompletion]:
    """The judged base completions of undecided problems, without probabilities and candidates yet."""
    prompts = encode_prompts(rollouts.model, problems, raw=False)
    count = _SEARCH.base_rollouts
    requests = [
        RolloutRequest(prompts[problem.id], SAMPLER.max_tokens, derive_seed(SEED, problem.id, index, "base"))
        for problem in problems
        for index in range(count)
    ]
    samples = rollouts.source.sample(requests)
    found: list[ReferenceCompletion] = []
    for number, problem in enumerate(problems):
        own = samples[number * count : (number + 1) * count]
        judgements = judge_all(
            rollouts.oracle, [(problem, rollouts.text(sample.ids), sample.truncated) for sample in own]
        )
        verdicts = [judgement.verdict for judgement in judgements]
        successes, failures = verdicts.count(Verdict.CORRECT), verdicts.count(Verdict.INCORRECT)
        if beta_posterior_between(successes, failures, _SEARCH.low, _SEARCH.high) < 0.5:
            continue
        found += [
            ReferenceCompletion(
                id=f"{problem.id}-{index}",
                problem_id=problem.id,
                question=problem.question,
                answer=problem.answer,
                form=problem.fields["form"],
                prompt_ids=prompts[problem.id],
                ids=sample.ids,
                succeeded=verdict is Verdict.CORRECT,
                probabilities=(),
                candidates=(),
            )
            for index, (sample, verdict) in enumerate(zip(own, verdicts, strict=True))
            if verdict is not Verdict.CENSORED
        ]
    return found


def _chosen(rollouts: BundledRollouts, found: Sequence[ReferenceCompletion]) -> list[ReferenceCompletion]:
    """One completion of a problem each: all forms in turn, both verdicts, and each with either of its two stories."""
    usual = {completion.id: _is_usual(completion, rollouts.text(completion.ids)) for completion in found}
    chosen: list[ReferenceCompletion] = []
    for number in range(COMPLETIONS):
        turn, form = divmod(number, len(FORMS))
        wanted = FORMS[form], (form + turn) % 2 == 0
        is_usual = (form + turn // 2) % 2 == 0
        used = {completion.problem_id for completion in chosen}
        fitting = [c for c in found if (c.form, c.succeeded) == wanted and c.problem_id not in used]
        chosen.append(next((c for c in fitting if usual[c.id] == is_usual), fitting[0]))
    return chosen


def _is_usual(completion: ReferenceCompletion, text: str) -> bool:
    """Whether a right answer came without a correction, or a wrong one from a flawed beginning rather than a slip."""
    problem, _ = find_problem(completion.question) or (None, 0)
    if problem is None or " Wait" in text:
        return False
    return completion.succeeded or text.lstrip().startswith(opening(problem, "flawed"))


def _scored(loaded: LoadedModel, completions: Sequence[ReferenceCompletion]) -> list[ReferenceCompletion]:
    scores = score_completions(loaded, [(c.prompt_ids, c.ids) for c in completions], SAMPLER)
    return [replace(c, probabilities=own) for c, own in zip(completions, scores, strict=True)]


# --- effects ----------------------------------------------------------------------------------------------------------


def _with_effects(rollouts: BundledRollouts, completion: ReferenceCompletion) -> ReferenceCompletion:
    found = []
    for position in candidates(completion.probabilities, _SEARCH.tau):
        alternative = rollouts.counts(_starts(completion, position, leaves=True))
        after = None
        if position + 1 < len(completion.ids):
            after = rollouts.counts(_starts(completion, position + 1, leaves=False))
        probability, own = completion.probabilities[position], completion.ids[position]
        delta, error = effect(probability, completion.succeeded, alternative, after)
        prefix = (*completion.prompt_ids, *completion.ids[:position])
        others = [rollouts.text([other]) for other in _likely(rollouts.model.loaded, prefix) if other != own]
        token = rollouts.text([own])
        kind = decision_kind(rollouts.text(prefix), token, others)
        found.append(ReferenceCandidate(position, token, kind, probability, alternative, after, delta, error))
    return replace(completion, candidates=tuple(found))


def _starts(completion: ReferenceCompletion, given: int, *, leaves: bool) -> list[Start]:
    arm = "leaves" if leaves else "after"
    return [
        Start(completion, given, leaves, derive_seed(SEED, completion.id, given, arm, index))
        for index in range(ROLLOUTS)
    ]


@torch.inference_mode()
def _likely(loaded: LoadedModel, prefix: Sequence[int]) -> list[int]:
    """Ids that are likely after a prefix, at temperature 1."""
    logits = loaded.model(input_ids=torch.tensor([list(prefix)], device=loaded.device)).logits[0, -1]
    likely: list[int] = torch.nonzero(logits.softmax(-1) >= _LIKELY).flatten().tolist()
    return likely


if __name__ == "__main__":
    save_reference(make_reference())
