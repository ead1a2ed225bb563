"""What the measured batches ask for: prompts, vectors, and pivot contexts that look like the traffic."""

from __future__ import annotations

import random
from collections.abc import Sequence

from steering_engine.loading import LoadedModel
from steering_spec import (
    ContextTrigger,
    GenerationSpec,
    PromptIds,
    SamplingParams,
    SteeringRule,
    SteeringSpec,
)

PROMPT_TOKENS = 4
"""Less than a page of the cache, so no prompt is shared with the run before."""
CONTEXT_TOKENS = 16
"""Length of the recorded contexts."""


def steered_blocks(block_count: int) -> list[int]:
    """Three blocks, at a quarter, the middle and three quarters of the model's depth."""
    return sorted({block_count // 4, block_count // 2, 3 * block_count // 4})


def prompts(vocab_size: int, count: int) -> list[tuple[int, ...]]:
    """Random prompts; the same ones at every call."""
    numbers = random.Random(0)
    return [tuple(numbers.randrange(vocab_size) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def unsteered(loaded: LoadedModel, requests: int, tokens: int) -> list[GenerationSpec]:
    """Requests with the first of `prompts`, each sampled with a seed of its own."""
    return [
        GenerationSpec(PromptIds(prompt), SamplingParams(max_tokens=tokens, seed=seed))
        for seed, prompt in enumerate(prompts(loaded.vocab_size, requests))
    ]


def every_step(vector: str) -> SteeringSpec:
    """A vector at all of its blocks, at every step."""
    return SteeringSpec((SteeringRule(vector),))


def never_firing(vector: str) -> SteeringSpec:
    """A vector that waits for a match longer than any of its contexts."""
    return SteeringSpec((SteeringRule(vector, trigger=ContextTrigger(min_match_tokens=CONTEXT_TOKENS + 1)),))


def contexts_like(
    histories: Sequence[Sequence[int]], count: int, vocab_size: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Contexts of `CONTEXT_TOKENS` ids of which a part is what stands before a place of the traffic.

    The places are every other one of the histories, and how many ids agree there is drawn evenly from 1 to all; the
    ids before those are random. So at every other step or so a look-up goes deep, and elsewhere it ends at once or
    nearly so, as far as the traffic itself doesn't repeat.

    Args:
        histories: Ids of prompt and completion of each request.
        count: Contexts to make.
        vocab_size: Ids that the model has.
        seed: Decides everything that is drawn.
    """
    numbers = random.Random(seed)
    contexts = []
    for _ in range(count):
        history = numbers.choice(histories)
        place = numbers.randrange(PROMPT_TOKENS, len(history) + 1, 2)
        agreeing = history[max(0, place - numbers.randint(1, CONTEXT_TOKENS)) : place]
        others = [numbers.randrange(vocab_size) for _ in range(CONTEXT_TOKENS - len(agreeing))]
        contexts.append((*others, *agreeing))
    return contexts
