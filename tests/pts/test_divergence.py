"""The divergence of steered completions, held against one request at a time with plain hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_pts.calibration.divergence import (
    Divergence,
    DivergenceSummary,
    TracedCompletion,
    kl_per_token,
    summarise,
)
from steering_pts.calibration.forcing import acting, changes_of
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    Completion,
    ConflictPolicy,
    GenerationSpec,
    PromptIds,
    SamplingParams,
    Selector,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector

PROMPT = (60, 61, 62)
IDS = (70, 71, 72, 73, 74)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "qwen3")))


def traced(
    *rules: SteeringRule,
    steps: Sequence[int] = (2,),
    prompt: tuple[int, ...] = PROMPT,
    ids: tuple[int, ...] = IDS,
    policy: ConflictPolicy = ConflictPolicy.SEQUENTIAL,
) -> TracedCompletion:
    acts = tuple(SteeringAct(i, rule.layers, step) for step in steps for i, rule in enumerate(rules))
    return TracedCompletion(prompt, ids, SteeringSpec(rules, policy), acts)


@contextmanager
def changing(loaded: LoadedModel, block: int, row: int, change: Any) -> Iterator[None]:
    def hook(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, row] = change(output[0, row])
        return changed

    handle = find_blocks(loaded.model)[block].register_forward_hook(hook)
    yield
    handle.remove()


def logprobs(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0].double().log_softmax(-1)


def expected_kl(loaded: LoadedModel, block: int, step: int, change: Any) -> list[float]:
    """KL(steered || unsteered) of every generated token where one row of one block is changed."""
    ids = [*PROMPT, *IDS]
    plain = logprobs(loaded, ids)
    with changing(loaded, block, len(PROMPT) - 1 + step, change):
        steered = logprobs(loaded, ids)
    kl = torch.nn.functional.kl_div(plain, steered, log_target=True, reduction="none").sum(-1)
    return kl[len(PROMPT) - 1 : -1].tolist()


@pytest.mark.parametrize("block", [0, 1, 2])
def test_it_is_that_of_a_single_request_with_a_hook(loaded: LoadedModel, block: int) -> None:
    vector = random_vector(loaded, "one", [0, 1, 2], strength=4.0)
    d, s = vector.directions[block], vector.metadata.calibrated_strength[block]

    (found,) = kl_per_token(loaded, [traced(SteeringRule("one", 1.5, (block,)))], {"one": vector})

    assert found.kl == pytest.approx(expected_kl(loaded, block, 2, lambda h: h + 1.5 * s * d), abs=1e-7)
    assert found.steered == (False, False, True, False, False)
    assert found.kl[2] > 1e-4


def test_before_the_first_act_it_is_exactly_zero(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "one", [0], strength=50.0)

    (found,) = kl_per_token(loaded, [traced(SteeringRule("one", 1.0, (0,)), steps=(3,))], {"one": vector})

    assert found.kl[:3] == (0.0, 0.0, 0.0)
    assert min(found.kl[3:]) > 0


def test_at_the_last_block_only_the_steered_step_diverges(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "one", [2], strength=50.0)

    (found,) = kl_per_token(loaded, [traced(SteeringRule("one", 1.0, (2,)))], {"one": vector})

    assert [kl > 0 for kl in found.kl] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (SteeringRule("one", 0.5, (1,), Ablate()), lambda h, d: h - 0.5 * (h @ d) * d),
        (SteeringRule("one", 1.0, (1,), Clamp(min=3.0)), lambda h, d: h + (3.0 - h @ d).clamp(min=0) * d),
        (
            SteeringRule("one", 1.0, (1,), Add(norm_preserved=True)),
            lambda h, d: (h + 5.0 * d) * h.norm() / (h + 5.0 * d).norm(),
        ),
    ],
    ids=["ablate", "clamp", "norm preserved"],
)
def test_every_operation(loaded: LoadedModel, rule: SteeringRule, change: Any) -> None:
    vector = random_vector(loaded, "one", [1], strength=4.0)  # and 1 more at block 1
    d = vector.directions[1]

    (found,) = kl_per_token(loaded, [traced(rule)], {"one": vector})

    assert found.kl == pytest.approx(expected_kl(loaded, 1, 2, lambda h: change(h, d)), abs=1e-7)


@pytest.mark.parametrize("policy", [ConflictPolicy.SEQUENTIAL, ConflictPolicy.FIRST])
def test_rules_at_the_same_row_act_in_their_order_or_the_first_alone(
    loaded: LoadedModel, policy: ConflictPolicy
) -> None:
    one, two = (random_vector(loaded, name, [1], seed=i) for i, name in enumerate(("one", "two")))
    d1, d2 = one.directions[1], two.directions[1]
    rules = (SteeringRule("one", 1.0, (1,), Clamp(max=-2.0)), SteeringRule("two", 1.0, (1,)))

    (found,) = kl_per_token(loaded, [traced(*rules, policy=policy)], {"one": one, "two": two})

    def clamped(h: torch.Tensor) -> torch.Tensor:
        return h + (-2.0 - h @ d1).clamp(max=0) * d1

    def change(h: torch.Tensor) -> torch.Tensor:
        return clamped(h) if policy is ConflictPolicy.FIRST else clamped(h + 5.0 * d2)

    assert found.kl == pytest.approx(expected_kl(loaded, 1, 2, change), abs=1e-7)


def test_acts_at_prompt_positions_count_and_steer_no_step(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "one", [0], strength=50.0)
    rule = SteeringRule("one", 1.0, (0,))
    completion = TracedCompletion(
        PROMPT, IDS, SteeringSpec((rule,)), (SteeringAct(0, (0,), prompt_position=1),)
    )

    (found,) = kl_per_token(loaded, [completion], {"one": vector})

    assert not any(found.steered)
    assert min(found.kl) > 0


def test_a_batch_of_many_lengths_gives_what_each_gives_alone(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "one", [0, 2], strength=20.0)
    rule = SteeringRule("one", 1.0, (0, 2))
    completions = [
        traced(
            rule, steps=(number % 3,), prompt=tuple(range(50, 52 + number)), ids=tuple(range(80, 84 + number))
        )
        for number in range(9)
    ]

    together = kl_per_token(loaded, completions, {"one": vector})

    for completion, found in zip(completions, together, strict=True):
        (alone,) = kl_per_token(loaded, [completion], {"one": vector})
        assert found.kl == pytest.approx(alone.kl, abs=1e-6)
        assert found.steered == alone.steered
        assert len(found.kl) == len(completion.ids)


def test_without_acts_nothing_diverges_and_no_vector_is_looked_up(loaded: LoadedModel) -> None:
    told: list[int] = []

    found = kl_per_token(loaded, [traced(SteeringRule("gone"), steps=())], {}, told.append)

    assert found == [Divergence((0.0,) * 5, (False,) * 5)]
    assert told == [5]


def test_a_vector_that_acted_must_be_there(loaded: LoadedModel) -> None:
    with pytest.raises(KeyError):
        kl_per_token(loaded, [traced(SteeringRule("gone", 1.0, (0,)))], {})


def test_a_completion_needs_tokens(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="without generated tokens"):
        kl_per_token(loaded, [traced(SteeringRule("one"), ids=())], {})


def test_no_hook_is_left_behind(loaded: LoadedModel) -> None:
    vector = random_vector(loaded, "one", [0], strength=50.0)
    before = logprobs(loaded, [*PROMPT, *IDS])

    kl_per_token(loaded, [traced(SteeringRule("one", 1.0, (0,)))], {"one": vector})

    assert torch.equal(logprobs(loaded, [*PROMPT, *IDS]), before)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_the_recorded_acts_give_the_engines_own_log_probabilities(family: str, tmp_path: Path) -> None:
    model = SteeredModel.load(str(save_tiny_model(tmp_path, family)))
    vector = random_vector(model.loaded, "one", [0, 1], strength=30.0)
    model.vectors.load("one", encode_vector(vector))
    steering = SteeringSpec((SteeringRule("one", selector=Selector.steps(1, 4)),))
    spec = GenerationSpec(
        PromptIds(PROMPT), SamplingParams(max_tokens=6, seed=3), steering, steering_trace=True
    )

    async def complete() -> Completion:
        try:
            return await model.generate(spec)
        finally:
            await model.close()

    steered = asyncio.run(complete())
    assert steered.applied_steering is not None
    completion = TracedCompletion(PROMPT, steered.ids, steered.applied_steering, steered.acts)

    with acting(model.loaded, changes_of([completion], {"one": vector}, model.loaded.device)):
        forced = logprobs(model.loaded, [*PROMPT, *steered.ids])
    for step, token in enumerate(steered.tokens):
        assert forced[len(PROMPT) - 1 + step, token.id].item() == pytest.approx(token.logprob, abs=1e-4)
    (found,) = kl_per_token(model.loaded, [completion], {"one": vector})
    assert found.steered == (False, True, False, False, True, False)
    assert [kl > 0 for kl in found.kl] == [False, True, True, True, True, True]


def test_the_summary_is_of_the_steps_that_are_not_steered() -> None:
    one = Divergence((0.1, 5.0, 0.3), (False, True, False))

    assert one.counted() == (pytest.approx(0.4), 2)
    assert one.counted(every_step=True) == (pytest.approx(5.4), 3)
    summary = summarise([one, Divergence((0.2,), (False,))])
    assert summary == DivergenceSummary(pytest.approx(0.2), pytest.approx(0.29), 3)
    assert summarise([Divergence((1.0,), (True,))]) is None
