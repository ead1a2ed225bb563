"""Random requests in random batches: each gets what the slow reference says that it gets alone.

CI runs 60 batches. Decisions so narrow that rounding could turn them are not compared; everything else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.loading import load_model
from steering_engine.model import SteeredModel
from steering_spec import SteeringAct, SteeringSpec
from tests.support.direct import Got, engine_with, get, get_copies, request
from tests.support.drawing import STEPS, steerings
from tests.support.engine import forget_pages, idle
from tests.support.lively import ALPHABET, lively_vectors, save_lively_model
from tests.support.reference import Outcome, Reference

MOST_PROMPT = 60
# What one request needs, and a page: so that requests preempt each other.
TIGHT = -(-(MOST_PROMPT + STEPS) // PAGE_TOKENS) * PAGE_TOKENS + 2 * PAGE_TOKENS
COMMON = tuple(ALPHABET[(5 * n + n // 7) % len(ALPHABET)] for n in range(MOST_PROMPT))
EOS = (1,)
TOLERANCE = 1e-4

ENGINES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"deterministic": True, "cache_tokens": TIGHT, "max_batch_tokens": 24}),
    ("qwen3", {"deterministic": False, "cache_tokens": 1024, "max_batch_tokens": 7}),
    ("gpt2", {"deterministic": True, "cache_tokens": 1024, "max_batch_tokens": 24}),
    ("gpt2", {"deterministic": False, "cache_tokens": TIGHT, "max_batch_tokens": 256}),
    ("mistral", {"deterministic": True, "cache_tokens": TIGHT, "max_batch_tokens": 17}),
    ("gemma2", {"deterministic": False, "cache_tokens": 1024, "max_batch_tokens": 24}),
]


@dataclass(frozen=True)
class Wish:
    """What somebody asks of the engine.

    Attributes:
        prompt: Its ids.
        steering: How it is steered.
        tokens: Most tokens.
        temperature: 0 is greedy.
        seed: Of the first completion; each further one has the next.
        copies: Completions that share the computation of the prompt.
        delay: Milliseconds until it is submitted.
        leave_after: Tokens after which a single reader leaves; None reads all.
    """

    prompt: tuple[int, ...]
    steering: SteeringSpec | None
    tokens: int
    temperature: float
    seed: int
    copies: int
    delay: int
    leave_after: int | None


async def grant(model: SteeredModel, number: int, wish: Wish) -> list[Got]:
    await asyncio.sleep(wish.delay / 1000)
    asked = request(
        model,
        f"{number}",
        wish.prompt,
        wish.steering,
        tokens=wish.tokens,
        temperature=wish.temperature,
        seed=wish.seed,
        streaming=wish.leave_after is not None,
    )
    if wish.copies == 1:
        return [await get(model, asked, leave_after=wish.leave_after)]
    return await get_copies(model, asked, wish.copies)


async def grant_all(model: SteeredModel, wishes: Sequence[Wish]) -> list[list[Got]]:
    forget_pages(model)
    found = await asyncio.gather(*(grant(model, number, wish) for number, wish in enumerate(wishes)))
    await idle(model)
    return list(found)


@st.composite
def prompts(draw: st.DrawFn, earlier: Sequence[tuple[Wish, list[Outcome]]]) -> tuple[int, ...]:
    """Beginnings that requests share, whole prompts of others, and others' completions."""
    kinds = ["shared"] + ["same", "continued"] * bool(earlier)
    kind = draw(st.sampled_from(kinds))
    if kind == "shared":
        own = draw(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=8))
        return (*COMMON[: draw(st.sampled_from([0, 3, 15, 16, 31, 33, 48]))], *own)
    wish, outcomes = draw(st.sampled_from(earlier))
    if kind == "same":
        return wish.prompt
    tokens = outcomes[0].tokens
    return (*wish.prompt, *tokens[: draw(st.integers(1, len(tokens)))])[:MOST_PROMPT]


@st.composite
def wishes(draw: st.DrawFn, vectors: dict[str, Any], earlier: Sequence[tuple[Wish, list[Outcome]]]) -> Wish:
    prompt = draw(prompts(earlier))
    steering = None
    alike = [wish.steering for wish, _ in earlier if wish.prompt == prompt[: len(wish.prompt)]]
    kind = draw(st.sampled_from(["own"] * 5 + ["alike", "none"]))
    if kind == "alike" and alike:
        steering = draw(st.sampled_from(alike))
    elif kind != "none":
        steering = draw(steerings(vectors, len(prompt)))
    copies = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return Wish(
        prompt,
        steering,
        tokens=draw(st.sampled_from([STEPS, STEPS - 3, 5, 1])),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7])),
        seed=draw(st.integers(0, 1000)),
        copies=copies,
        delay=draw(st.sampled_from([0, 0, 2, 10, 25])),
        leave_after=draw(st.sampled_from([None, None, 1, 5])) if copies == 1 else None,
    )


def row_of(act: SteeringAct, prompt_length: int) -> int:
    return (act.prompt_position or 0) if act.step is None else prompt_length - 1 + act.step


def check(got: Got, expected: Outcome, wish: Wish) -> None:
    """That a request gave what the reference says, as far as its reader has read."""
    if expected.near_tie:
        return
    count = len(got.tokens)
    whole = wish.leave_after is None or wish.leave_after > len(expected.tokens)
    assert got.ids == expected.tokens[:count]
    assert count == len(expected.tokens) if whole else count >= min(wish.leave_after or 0, 1)
    assert got.logprobs == pytest.approx(expected.logprobs[:count], abs=TOLERANCE)
    rows = len(wish.prompt) - 1 + count  # the rows that led to these tokens
    acts = [act for act in expected.acts if row_of(act, len(wish.prompt)) < rows]
    assert [replace(act, score=None) for act in got.acts] == [replace(act, score=None) for act in acts]
    scores = [act.score for act in got.acts]
    assert scores == [None if act.score is None else pytest.approx(act.score, abs=TOLERANCE) for act in acts]


@pytest.mark.parametrize(("family", "limits"), ENGINES)
def test_every_request_gets_what_the_reference_says_that_it_gets_alone(
    family: str, limits: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_lively_model(tmp_path, family)
    plain = load_model(str(folder), "cpu", "float32")  # a copy without hooks, and with the plainest attention
    plain.model.set_attn_implementation("eager")
    vectors = lively_vectors(plain)
    model = engine_with(load_model(str(folder), "cpu", "float32"), vectors, **limits)

    @given(st.data())
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    def batches(data: st.DataObject) -> None:
        asked: list[tuple[Wish, list[Outcome]]] = []
        for _ in range(data.draw(st.sampled_from([3, 1, 4, 5, 6]))):
            wish = data.draw(wishes(vectors, asked))
            seeds = range(wish.seed, wish.seed + wish.copies)
            outcomes = [
                Reference(plain.model, vectors, wish.steering, wish.prompt).run(
                    wish.tokens, temperature=wish.temperature, seed=seed, eos_ids=EOS
                )
                for seed in seeds
            ]
            asked.append((wish, outcomes))
        got = asyncio.run(grant_all(model, [wish for wish, _ in asked]))
        for (wish, outcomes), of_wish in zip(asked, got, strict=True):
            for one, expected in zip(of_wish, outcomes, strict=True):
                check(one, expected, wish)

    try:
        batches()
    finally:
        asyncio.run(model.close())
