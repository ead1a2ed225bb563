from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from steering_engine.model import SteeredModel
from steering_pts import scoring
from steering_pts.rollouts import RolloutRequest
from steering_pts.scoring import score_completions
from steering_pts.settings import SamplerSettings
from steering_spec import GenerationSpec, PromptIds
from tests.support.pts import rollouts_of

SAMPLERS = [
    SamplerSettings(),
    SamplerSettings(temperature=0.5),
    SamplerSettings(temperature=2.5),
    SamplerSettings(top_k=7),
    SamplerSettings(top_p=0.6),
    SamplerSettings(min_p=0.3),
    SamplerSettings(temperature=0.1, top_k=40, top_p=0.9),
    SamplerSettings(temperature=0.2, top_k=100, top_p=0.95, min_p=0.1),
]
COMPLETIONS = [
    ((10, 11, 12), (40, 41)),
    ((20,), (50, 51, 52, 53, 54, 55, 56)),
    ((10, 11, 12, 13, 14, 15, 16), (60,)),
    ((30, 31), (70, 71, 72, 73)),
]


def reference(
    model: SteeredModel, prompt: Sequence[int], ids: Sequence[int], sampler: SamplerSettings
) -> list[float]:
    """pi_k of one completion, a forward of its own for every token, the filters written out plainly."""
    probabilities = []
    for k, token_id in enumerate(ids):
        with torch.no_grad():
            logits = model.loaded.model(torch.tensor([[*prompt, *ids[:k]]])).logits[0, -1].tolist()
        top = max(logits)
        weights = {i: math.exp((logit - top) / sampler.temperature) for i, logit in enumerate(logits)}
        ranked = sorted(weights, key=lambda i: -weights[i])
        ranked = ranked[: sampler.top_k or None]
        total = sum(weights[i] for i in ranked)
        nucleus, mass = [], 0.0
        for i in ranked:
            if sampler.top_p < 1 and mass / total >= sampler.top_p:
                break
            nucleus.append(i)
            mass += weights[i]
        kept = [i for i in nucleus if weights[i] >= sampler.min_p * max(weights.values())]
        mass = math.fsum(weights[i] for i in kept)
        probabilities.append(weights[token_id] / mass if token_id in kept else 0.0)
    return probabilities


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scores_of_a_batch_are_those_of_every_token_on_its_own(
    model: SteeredModel, sampler: SamplerSettings
) -> None:
    scores = score_completions(model.loaded, COMPLETIONS, sampler)

    for (prompt, ids), probabilities in zip(COMPLETIONS, scores, strict=True):
        assert probabilities == pytest.approx(reference(model, prompt, ids, sampler), rel=1e-4)


@pytest.mark.parametrize("limit", ["_ROWS_PER_FORWARD", "_LOGITS_PER_FORWARD", "_LOGITS_AT_ONCE"])
def test_limits_of_memory_change_no_score(
    model: SteeredModel, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score_completions(model.loaded, COMPLETIONS, SAMPLERS[-1])

    monkeypatch.setattr(scoring, limit, 3 * model.loaded.vocab_size if "LOGITS" in limit else 3)
    scores = score_completions(model.loaded, COMPLETIONS, SAMPLERS[-1])

    for one, other in zip(scores, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_token_that_the_sampler_drew_has_a_probability(
    model: SteeredModel, sampler: SamplerSettings
) -> None:
    prompts = [tuple(range(start, start + 3 + start % 4)) for start in range(2, 66)]
    with rollouts_of(model, sampler) as source:
        drawn = source.sample([RolloutRequest(prompt, 8, seed) for seed, prompt in enumerate(prompts)])

    scores = score_completions(
        model.loaded, [(p, r.ids) for p, r in zip(prompts, drawn, strict=True)], sampler
    )

    for rollout, probabilities in zip(drawn, scores, strict=True):
        assert len(probabilities) == len(rollout.ids)
        assert min(probabilities) > 0
        assert max(probabilities) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scores_are_the_probabilities_by_which_the_engine_drew(
    model: SteeredModel, sampler: SamplerSettings
) -> None:
    prompts = [tuple(range(start, start + 3 + start % 4)) for start in range(2, 66)]
    specs = [
        GenerationSpec(PromptIds(prompt), sampler.params(seed, 8)) for seed, prompt in enumerate(prompts)
    ]
    with rollouts_of(model, sampler) as source:
        drawn = [completion for completion in source.complete(specs) if completion is not None]

    scores = score_completions(
        model.loaded, [(p, c.ids) for p, c in zip(prompts, drawn, strict=True)], sampler
    )

    for completion, probabilities in zip(drawn, scores, strict=True):
        own = [math.exp(token.logprob) for token in completion.tokens]
        assert probabilities == pytest.approx(own, rel=1e-4)


def test_nothing_to_score_gives_nothing(model: SteeredModel) -> None:
    assert score_completions(model.loaded, [], SamplerSettings()) == []
