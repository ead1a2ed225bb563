"""Requests without steering have the logits that they would have in a batch where nobody is steered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steering_engine.model import SteeredModel
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    ConflictPolicy,
    ContextTrigger,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
)
from tests.support.direct import Got, get_all, request, running_engine, watched_logits
from tests.support.engine import forget_pages, idle
from tests.support.lively import lively_model, lively_vectors, some_ids

TOKENS = 14
SHARED = some_ids(18)
STEERINGS = (
    SteeringSpec((SteeringRule("wide", 2.0),)),
    SteeringSpec((SteeringRule("middle", -2.0, operation=Add(True), selector=Selector.prompt_window(3)),)),
    SteeringSpec((SteeringRule("wide", operation=Clamp(-1, 1)), SteeringRule("late", operation=Ablate()))),
    SteeringSpec((SteeringRule("middle", trigger=ContextTrigger(1, hold_steps=2)),)),
    SteeringSpec((SteeringRule("late", trigger=ProbeTrigger(threshold=0.1)),)),
    SteeringSpec(
        (SteeringRule("wide", trigger=SimilarityTrigger(min_cosine=0.1)), SteeringRule("wide", -1.0)),
        ConflictPolicy.FIRST,
    ),
)


def prompt(number: int) -> tuple[int, ...]:
    """Prompts of different lengths that share a page."""
    return (*SHARED, *some_ids(2 + 3 * number, seed=number))


async def together(
    model: SteeredModel, others: tuple[SteeringSpec | None, ...]
) -> tuple[list[Got], list[Got], dict[str, list[torch.Tensor]]]:
    """What the unsteered half of a batch gives, what the other half gives, and the logits of the first."""
    await idle(model)
    forget_pages(model)
    mine = [request(model, f"{n}", prompt(n), tokens=TOKENS) for n in range(6)]
    theirs = [
        request(model, f"other {n}", prompt(n), steering, tokens=TOKENS) for n, steering in enumerate(others)
    ]
    with watched_logits(model) as logits:
        # One of each in turn, so that their rows lie between each other.
        got = await get_all(model, [one for pair in zip(theirs, mine, strict=True) for one in pair])
    return got[1::2], got[::2], {name: logits[name] for name in map(str, range(6))}


@pytest.mark.parametrize(
    ("family", "deterministic"),
    [
        ("qwen3", True),
        ("mistral", True),
        ("gpt2", True),
        ("mixtral", True),
        ("qwen3", False),
        ("gpt_neox", False),
        ("gemma2", False),
        ("gpt_oss", False),
    ],
)
async def test_their_logits_beside_steered_requests_are_those_beside_unsteered_ones(
    family: str, deterministic: bool, tmp_path: Path
) -> None:
    loaded = lively_model(tmp_path, family)
    async with running_engine(
        loaded, lively_vectors(loaded), deterministic=deterministic, max_batch_tokens=24
    ) as model:
        plain, others_plain, expected = await together(model, (None,) * 6)
        mine, others_steered, logits = await together(model, STEERINGS)
    assert any(one.ids != other.ids for one, other in zip(others_plain, others_steered, strict=True))
    assert {act.rule_index for one in others_steered for act in one.acts} == {0, 1}
    for number, (one, other) in enumerate(zip(mine, plain, strict=True)):
        assert one.acts == ()
        assert one.ids == other.ids
        rows, expected_rows = (torch.stack(of[f"{number}"]) for of in (logits, expected))
        if deterministic:
            assert torch.equal(rows, expected_rows)
        else:
            torch.testing.assert_close(rows, expected_rows, rtol=0, atol=1e-5)
