"""The engine against nnsight: a batch of steered requests gives what an intervention gives for each one alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from nnsight import TransformersModel

from steering_engine.blocks import find_blocks
from steering_engine.model import EngineLimits, SteeredModel
from steering_spec import (
    GenerationSpec,
    PromptIds,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import save_random_vector

NEW_TOKENS = 12
FAMILIES = [
    "llama",
    "qwen3",
    "mistral",
    "gemma3",
    "phi3",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "qwen2",
    "qwen3_moe",
    "granite",
    "gemma2",
    "gpt_oss",
    "mixtral",
    "smollm3",
]


@dataclass(frozen=True)
class Case:
    """One request: a vector at blocks, acting on the rows that the selector names."""

    blocks: tuple[int, ...]
    strength: float
    selector: Selector
    steps: range
    prompt_rows: tuple[int, ...] = ()


CASES = [
    Case((0,), 1.0, Selector.every_step(), range(99)),
    Case((1,), -1.0, Selector.steps(0), range(1)),
    Case((2,), 2.0, Selector.steps(3), range(3, 4)),
    Case((0, 2), 0.5, Selector.step_window(2, 5), range(2, 5)),
    Case((1,), 1.5, Selector.prompt_positions(0, -2), range(0), (0, -2)),
    Case((0, 1, 2), 1.0, Selector.step_window(6), range(6, 99)),
    Case((2,), 3.0, Selector.prompt_window(1, 4), range(0), (1, 2, 3)),
    Case((), 1.0, Selector.every_step(), range(0)),
]


def nnsight_greedy(
    model: TransformersModel,
    prompt: tuple[int, ...],
    completion: tuple[int, ...],
    case: Case,
    deltas: dict[int, torch.Tensor],
) -> list[int]:
    """The most likely token after every prefix of one request alone, its rows changed by nnsight, without a cache.

    Attention is causal, so one forward over prompt and completion gives what decoding token by token would.
    """
    blocks = find_blocks(model._module)
    path = next(name for name, module in model._module.named_modules() if module is blocks)
    ids = [*prompt, *completion[:-1]]
    last = len(prompt) - 1
    rows = [row % len(prompt) for row in case.prompt_rows] + [
        last + step for step in case.steps if last + step < len(ids)
    ]
    with torch.no_grad(), model.trace(torch.tensor([ids])):
        for block in case.blocks:
            envoy = model.get(f"{path}.{block}")
            hidden = envoy.output.clone()
            hidden[:, rows] = hidden[:, rows] + deltas[block]
            envoy.output = hidden
        logits = model.output.logits[0, last:].save()
    return logits.argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_mixed_batch_equals_nnsight_on_each_request_alone(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    limits = EngineLimits(max_batch_tokens=24, cache_tokens=2048, max_concurrent_requests=16)
    model = SteeredModel.load(str(folder), device="cpu", dtype="float32", limits=limits)
    try:
        prompts, specs, deltas = [], [], []
        for index, case in enumerate(CASES):
            generator = torch.Generator().manual_seed(index)
            prompt = tuple(torch.randint(2, 258, (9 + 3 * index,), generator=generator).tolist())
            steering = None
            by_block = {}
            if case.blocks:
                name = f"vector-{index}"
                path = save_random_vector(tmp_path, model.loaded, name, case.blocks, seed=index)
                model.vectors.load(name, path)
                registered = model.vectors._vectors[name].vector
                for block in case.blocks:
                    scale = torch.tensor(case.strength * registered.metadata.calibrated_strength[block])
                    by_block[block] = scale * registered.directions[block]
                steering = SteeringSpec((SteeringRule(name, case.strength, selector=case.selector),))
            prompts.append(prompt)
            deltas.append(by_block)
            sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
            specs.append(GenerationSpec(PromptIds(prompt), sampling, steering))
        got = await asyncio.gather(*(model.generate(spec) for spec in specs))
    finally:
        await model.close()
    reference = TransformersModel(
        model.loaded.model, task="text-generation", tokenizer=model.loaded.tokenizer
    )
    for case, prompt, by_block, completion in zip(CASES, prompts, deltas, got, strict=True):
        assert list(completion.ids) == nnsight_greedy(reference, prompt, completion.ids, case, by_block), case
