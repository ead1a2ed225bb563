"""Teacher-forced scoring: what a sampler could have drawn at every step of a completion, and how likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from steering_engine.engine.sampling import token_probabilities
from steering_engine.loading import LoadedModel
from steering_pts.settings import SamplerSettings

_ROWS_PER_FORWARD = 4096
_LOGITS_PER_FORWARD = 1 << 28  # 1 GiB in float32: with a vocabulary of 150,000 that is 1,800 rows
_LOGITS_AT_ONCE = (
    1 << 24
)  # turned into float64 probabilities, of which the sampler's filters make several copies


class Distributions(NamedTuple):
    """What the sampler draws from at some steps of a completion.

    Attributes:
        completion: Index of the completion.
        start: The first of the steps.
        probabilities: `[steps, vocab]` float64, on the device of the model.
    """

    completion: int
    start: int
    probabilities: torch.Tensor


def score_completions(
    loaded: LoadedModel, completions: Sequence[tuple[Sequence[int], Sequence[int]]], sampler: SamplerSettings
) -> list[tuple[float, ...]]:
    """pi_k for every token of each completion, in one forward per batch of similar lengths.

    Args:
        loaded: The model that drew them.
        completions: Pairs of prompt ids and generated ids.
        sampler: How they were drawn; probabilities are those after temperature, top-k, top-p
            and min-p.

    Returns:
        For each completion `[generated tokens]` probabilities in [0, 1].
    """
    results: list[list[float]] = [[] for _ in completions]
    for index, start, probabilities in step_distributions(loaded, completions, sampler):
        ids = completions[index][1][start : start + len(probabilities)]
        chosen = torch.tensor(ids, device=probabilities.device)
        results[index] += probabilities.gather(-1, chosen[:, None]).squeeze(-1).clamp(0.0, 1.0).tolist()
    return [tuple(own) for own in results]


def step_distributions(
    loaded: LoadedModel, completions: Sequence[tuple[Sequence[int], Sequence[int]]], sampler: SamplerSettings
) -> Iterator[Distributions]:
    """The sampler's distribution at every step of each completion, a few steps at a time.

    The steps of a completion come in order; completions come in an order of their own, the longest first.

    Args:
        loaded: The model.
        completions: Pairs of prompt ids and generated ids.
        sampler: Whose distribution it is, that after temperature, top-k, top-p and min-p.
    """
    order = sorted(range(len(completions)), key=lambda i: sum(map(len, completions[i])))
    most_rows = min(_ROWS_PER_FORWARD, _LOGITS_PER_FORWARD // loaded.vocab_size)
    while order:
        longest = sum(map(len, completions[order[-1]]))
        batch = [order.pop() for _ in range(min(len(order), max(1, most_rows // longest)))]
        logits = _logits(loaded, [completions[i] for i in batch])
        for row, index in enumerate(batch):
            prompt, ids = completions[index]
            predicting = logits[row, len(prompt) - 1 : len(prompt) + len(ids) - 1]
            size = max(1, _LOGITS_AT_ONCE // loaded.vocab_size)
            for start in range(0, len(ids), size):
                part = predicting[start : start + size]
                yield Distributions(index, start, _probabilities(part, sampler))


@torch.inference_mode()
def _logits(loaded: LoadedModel, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> torch.Tensor:
    """`[completions, tokens of the longest, vocab]`."""
    length = max(len(prompt) + len(ids) for prompt, ids in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long, device=loaded.device)
    # Padding stands on the right, where causal attention never looks.
    for row, (prompt, ids) in enumerate(batch):
        input_ids[row, : len(prompt) + len(ids)] = torch.tensor([*prompt, *ids], device=loaded.device)
    attention_mask = torch.ones_like(input_ids)
    logits: torch.Tensor = loaded.model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).logits
    return logits


@torch.inference_mode()
def _probabilities(logits: torch.Tensor, sampler: SamplerSettings) -> torch.Tensor:
    """The sampler's distribution `[rows, vocab]` for logits `[rows, vocab]`."""
    constant = torch.ones(len(logits), dtype=torch.float64)
    return token_probabilities(
        logits,
        constant * sampler.temperature,
        (constant * sampler.top_k).long(),
        constant * sampler.top_p,
        constant * sampler.min_p,
    )
