"""The engine against nnsight: a batch of steered requests gives what an intervention gives for each one alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight import TransformersModel

from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.schema import SteeringVector
from steering_spec import SteeringSpec, TriggerKind
from tests.support.direct import Got, get_all, request, running_engine, watched_logits
from tests.support.intervention import Case, cases, logits_by_hand
from tests.support.lively import ALPHABET, completion, lively_vector, save_lively_model, some_ids
from tests.support.models import FAMILIES

EOS = 1
TOKENS = 10
TOLERANCE = 1e-4
SHARED = some_ids(20, seed=7)  # one page and a bit of every prompt, so that pages are shared


def four_vectors(loaded: LoadedModel) -> list[SteeringVector]:
    """Vectors that differ in everything; their contexts are what the model says, and ids that it is likely to say."""
    said = completion(loaded, SHARED, TOKENS)
    found = []
    for seed in range(4):
        likely = [(EOS, ALPHABET[(3 * seed + n) % len(ALPHABET)]) for n in range(4)]
        contexts = [said[seed : seed + 2], said[-2:], *likely]
        found.append(lively_vector(loaded, f"v{seed}", seed=seed, contexts=contexts))
    return found


async def compare(
    folder: Path, requests: Sequence[Case], batch: int, **limits: Any
) -> set[TriggerKind | None]:
    """Runs the cases in batches of a size, and each alone with nnsight; returns what the rules that acted waited for.

    Prompts are of 24 to 46 tokens, so that they are computed in chunks, beside requests that decode already.
    """
    loaded = load_model(str(folder), "cpu", "float32")
    vectors = four_vectors(loaded)
    used = [vectors[number % len(vectors)] for number in range(len(requests))]
    prompts = [(*SHARED, *some_ids(4 + number % 23, seed=number)) for number in range(len(requests))]
    by_name = {vector.metadata.name: vector for vector in vectors}
    got: list[Got] = []
    async with running_engine(
        loaded, by_name, **{"max_batch_tokens": 24, "cache_tokens": 8192, **limits}
    ) as model:
        asked = [
            request(
                model, f"{number}", prompt, SteeringSpec((case.rule(vector.metadata.name),)), tokens=TOKENS
            )
            for number, (prompt, case, vector) in enumerate(zip(prompts, requests, used, strict=True))
        ]
        with watched_logits(model) as logits:
            for start in range(0, len(asked), batch):
                got += await get_all(model, asked[start : start + batch])
    ordinary = load_model(str(folder), "cpu", "float32")
    traced = TransformersModel(ordinary.model, task="text-generation", tokenizer=ordinary.tokenizer)
    for number, (prompt, case, vector, one) in enumerate(zip(prompts, requests, used, got, strict=True)):
        expected = logits_by_hand(traced, (*prompt, *one.ids[:-1]), len(prompt), case, vector)
        assert list(one.ids) == expected.argmax(-1).tolist(), case
        difference = (torch.stack(logits[f"{number}"]) - expected).abs().max()
        assert difference <= TOLERANCE, case
    return {act.trigger for one in got for act in one.acts}


@pytest.mark.parametrize("family", FAMILIES)
async def test_batches_of_8_equal_nnsight_on_each_request_alone(family: str, tmp_path: Path) -> None:
    acted = await compare(save_lively_model(tmp_path, family), cases(24), 8)
    assert acted == {None, *TriggerKind} - {TriggerKind.UNKNOWN}


# Full attention, sliding windows, experts, and no rotary embeddings.
@pytest.mark.parametrize(
    ("family", "deterministic"),
    [
        ("qwen3", True),
        ("gemma3", True),
        ("qwen3_moe", False),
        ("gpt2", False),
    ],
)
async def test_a_batch_of_64_equals_nnsight_on_each_request_alone(
    family: str, deterministic: bool, tmp_path: Path
) -> None:
    folder = save_lively_model(tmp_path, family)
    acted = await compare(folder, cases(64), 64, max_batch_tokens=200, deterministic=deterministic)
    assert acted == {None, *TriggerKind} - {TriggerKind.UNKNOWN}


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
async def test_single_requests_one_after_the_other_equal_nnsight(family: str, tmp_path: Path) -> None:
    acted = await compare(save_lively_model(tmp_path, family), cases(24), 1)
    assert acted == {None, *TriggerKind} - {TriggerKind.UNKNOWN}
