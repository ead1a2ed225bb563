"""Teacher-forced scoring: the probability of every token of a completion under the sampler that drew it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steering_engine.engine.sampling import token_probabilities
from steering_engine.loading import LoadedModel
from steering_pts.settings import SamplerSettings

_ROWS_PER_FORWARD = 4096
_LOGITS_PER_FORWARD = 1 << 28  # 1 GiB in float32: with a vocabulary of 150,000 that is 1,800 rows
_LOGITS_AT_ONCE = (
    1 << 24
)  # turned into float64 probabilities, of which the sampler's filters make several copies


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
    results: list[tuple[float, ...]] = [()] * len(completions)
    order = sorted(range(len(completions)), key=lambda i: sum(map(len, completions[i])))
    most_rows = min(_ROWS_PER_FORWARD, _LOGITS_PER_FORWARD // loaded.vocab_size)
    while order:
        longest = sum(map(len, completions[order[-1]]))
        batch = [order.pop() for _ in range(min(len(order), max(1, most_rows // longest)))]
        for index, probabilities in zip(
            batch, _score(loaded, [completions[i] for i in batch], sampler), strict=True
        ):
            results[index] = probabilities
    return results


@torch.inference_mode()
def _score(
    loaded: LoadedModel, batch: Sequence[tuple[Sequence[int], Sequence[int]]], sampler: SamplerSettings
) -> list[tuple[float, ...]]:
    length = max(len(prompt) + len(ids) for prompt, ids in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long, device=loaded.device)
    # Padding stands on the right, where causal attention never looks.
    for row, (prompt, ids) in enumerate(batch):
        input_ids[row, : len(prompt) + len(ids)] = torch.tensor([*prompt, *ids], device=loaded.device)
    attention_mask = torch.ones_like(input_ids)
    logits = loaded.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    results = []
    for row, (prompt, ids) in enumerate(batch):
        predicting = logits[row, len(prompt) - 1 : len(prompt) + len(ids) - 1]
        chosen = torch.tensor(ids, device=loaded.device)
        size = max(1, _LOGITS_AT_ONCE // loaded.vocab_size)
        parts = [slice(start, start + size) for start in range(0, len(ids), size)]
        results.append(
            tuple(p for part in parts for p in _chosen_probabilities(predicting[part], chosen[part], sampler))
        )
    return results


def _chosen_probabilities(
    logits: torch.Tensor, chosen: torch.Tensor, sampler: SamplerSettings
) -> list[float]:
    """Pi of the chosen ids `[rows]` under the sampler, from logits `[rows, vocab]`."""
    constant = torch.ones(len(chosen), dtype=torch.float64)
    probabilities = token_probabilities(
        logits,
        constant * sampler.temperature,
        (constant * sampler.top_k).long(),
        constant * sampler.top_p,
        constant * sampler.min_p,
    )
    values: list[float] = probabilities.gather(-1, chosen[:, None]).squeeze(-1).clamp(0.0, 1.0).tolist()
    return values
