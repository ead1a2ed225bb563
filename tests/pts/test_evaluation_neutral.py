from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

import pytest
import torch

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_pts.calibration.divergence import kl_per_token
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import steered
from steering_pts.evaluation.neutral import WINDOW_TOKENS, acts_on, neutral_completions, neutral_ids
from steering_pts.evaluation.served import ServedVector, TriggerName, trigger_of
from steering_spec import GenerationSpec, PromptIds, SamplingParams
from tests.support.vectors import random_vector


def served(model: SteeredModel, name: str, trigger: TriggerName, **options: Any) -> ServedVector:
    """A vector that the model's registry has as well."""
    generator = torch.Generator().manual_seed(len(name))
    probe = torch.randn(model.loaded.hidden_size, generator=generator)
    centroids = torch.randn(3, model.loaded.hidden_size, generator=generator)
    vector = random_vector(
        model.loaded,
        name,
        [1, 2],
        seed=sum(name.encode()),
        strength=3.0,
        contexts=[(token,) for token in range(101, 190)],
        probes={0: (probe, 0.1), 1: (-probe, 0.2)},
        centroids={1: centroids},
        probe_threshold={0: 0.5, 1: 0.6},
        probe_auc={0: 0.7, 1: 0.9},
        centroid_min_cosine={1: 0.05},
        **options,
    )
    data = encode_vector(vector)
    info = model.vectors.load(f"neutral-{name}", data)
    when, _ = trigger_of(vector, trigger)
    made = ServedVector(vector, data, info.sha256, when, 1.0)
    model.vectors.load(made.id, data)
    return made


@pytest.mark.parametrize(
    "triggers", [["context"], ["probe"], ["similarity"], ["always"], ["probe", "similarity"]]
)
def test_a_text_is_acted_on_as_the_engine_acts_on_it(
    model: SteeredModel, triggers: list[TriggerName]
) -> None:
    vectors = [served(model, f"{name}-{place}", name) for place, name in enumerate(triggers)]
    # A completion of one prompt token is a text whose acts the engine has told.
    spec = GenerationSpec(
        PromptIds((140,)),
        SamplingParams(max_tokens=24, min_tokens=24, seed=7, n=6),
        steered(vectors),
        steering_trace=True,
    )
    completions = asyncio.run(model.generate_many(spec))

    fired = 0
    for completion in completions:
        found = acts_on(model.loaded, (140, *completion.ids), vectors)
        told = sorted((act.step or 0, act.rule_index, act.layers) for act in completion.acts)
        assert [(act.step, act.rule_index, act.layers) for act in found] == told
        fired += len(told)
    steps = 24 * len(completions) * len(vectors)
    assert fired == steps if triggers == ["always"] else 0 < fired < steps


def test_a_long_text_is_cut_into_windows_that_leave_no_step_out(model: SteeredModel) -> None:
    vector = served(model, "long", "always")
    text = "neutral " * 40

    completions = neutral_completions(model.loaded, text, [vector], steered([vector]))

    window = min(WINDOW_TOKENS, model.loaded.context_tokens)
    assert len(completions) == 2
    assert sum(len(one.ids) for one in completions) == len(text) - 1
    assert all(len(one.prompt_ids) == 1 and len(one.ids) < window for one in completions)
    divergences = kl_per_token(model.loaded, completions, {vector.id: vector.vector})
    assert all(kl > 0 for one in divergences for kl in one.kl)


def test_a_long_text_is_no_reason_to_warn(model: SteeredModel, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.deepcopy(model.loaded.tokenizer)
    tokenizer.model_max_length = 8
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        ids = neutral_ids(tokenizer, "far longer than the context")
    finally:
        logger.removeHandler(caplog.handler)

    assert len(ids) > 8
    assert not caplog.records


def test_a_text_without_a_step_is_refused(model: SteeredModel) -> None:
    vector = served(model, "short", "always")

    with pytest.raises(EvaluationError, match="the neutral text has 1 tokens; expected at least 2"):
        neutral_completions(model.loaded, "a", [vector], steered([vector]))
