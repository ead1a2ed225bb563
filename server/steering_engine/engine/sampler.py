"""Samples a batch: every row from its own request's distribution, as if the row were alone.

The mathematics is in `steering_engine.engine.sampling`; here the settings of the requests become its tensors. Rows
whose request wants no biases, penalties or alternatives don't pay for those that do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import torch

from steering_engine.engine import sampling
from steering_engine.engine.run import Run
from steering_engine.engine.sampling import Places
from steering_engine.errors import NotFiniteError
from steering_spec import TokenLogprob


def sample_batch(
    logits: torch.Tensor, runs: Sequence[Run], eos_ids: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws the next token of each run, and leaves with the run the alternatives that it asks for.

    A run whose logits are not finite fails with NotFiniteError; its id means nothing.

    Args:
        logits: `[rows, vocab]` on any device; a row depends on no other one.
        runs: The run of each row.
        eos_ids: End-of-sequence ids, which are held back before a request's `min_tokens`.

    Returns:
        Ids `[rows]` int64, and the natural logarithm of their probabilities `[rows]` float32.
    """
    settings = [run.request.sampling for run in runs]
    device = logits.device
    temperature = torch.tensor([one.temperature for one in settings], device=device)
    probabilities = sampling.token_probabilities(
        _adjusted(logits, runs, eos_ids),
        temperature,
        torch.tensor([one.top_k for one in settings], device=device),
        torch.tensor([one.top_p for one in settings], device=device),
        torch.tensor([one.min_p for one in settings], device=device),
    )
    for row, run in enumerate(runs):
        if run.request.banned_first_ids and run.step == 0:
            banned = torch.tensor(run.request.banned_first_ids, device=device)
            probabilities[row] = sampling.ban(probabilities[row], banned)
    _fail_rows_without_distribution(probabilities, runs)
    _tell_alternatives(probabilities, runs)
    uniforms = torch.tensor([run.uniform() for run in runs], dtype=torch.float64, device=device)
    return sampling.draw(probabilities, temperature, uniforms)


def _tell_alternatives(probabilities: torch.Tensor, runs: Sequence[Run]) -> None:
    asked = {row: run.request.sampling.top_logprobs for row, run in enumerate(runs)}
    rows = [row for row, count in asked.items() if count]
    if not rows:
        return
    index = torch.tensor(rows, device=probabilities.device)
    ids, logprobs = sampling.most_likely(probabilities[index], max(asked.values()))
    for row, *best in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
        alternatives = zip(*best, strict=True)
        runs[row].alternatives = tuple(
            TokenLogprob(token_id, logprob)
            for token_id, logprob in itertools.islice(alternatives, asked[row])
            if logprob > -math.inf
        )


def _adjusted(logits: torch.Tensor, runs: Sequence[Run], eos_ids: Collection[int]) -> torch.Tensor:
    """The logits with biases, penalties and ids held back, `[rows, vocab]`."""
    chosen = [row for row, run in enumerate(runs) if _is_adjusted(run)]
    if not chosen:
        return logits
    index = torch.tensor(chosen, device=logits.device)
    adjusted = [runs[row] for row in chosen]
    part = _held_back(_penalised(_biased(logits[index], adjusted), adjusted), adjusted, eos_ids)
    return part if len(chosen) == len(runs) else logits.index_copy(0, index, part)


def _is_adjusted(run: Run) -> bool:
    settings = run.request.sampling
    return bool(settings.logit_bias) or settings.penalises or run.holds_back_ends


def _biased(logits: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    entries = [
        (row, token_id, bias)
        for row, run in enumerate(runs)
        for token_id, bias in dict(run.request.sampling.logit_bias).items()
    ]
    if not entries:
        return logits
    rows, ids, bias = zip(*entries, strict=True)
    return sampling.add_bias(logits, _places(logits, rows, ids), logits.new_tensor(bias))


def _penalised(logits: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    rows = [row for row, run in enumerate(runs) if run.request.sampling.penalises]
    if not rows:
        return logits
    settings = [runs[row].request.sampling for row in rows]
    found = [runs[row].occurrences for row in rows]
    completions = [one.completion_ids() for one in found]
    everything = [torch.cat([one.prompt_ids, ids]) for one, ids in zip(found, completions, strict=True)]
    penalty = logits.new_tensor([one.repetition_penalty for one in settings])
    places, entries = _places_of(rows, everything, logits.device)
    logits = sampling.penalise_repetition(logits, places, penalty[entries])
    presence = logits.new_tensor([one.presence_penalty for one in settings])
    frequency = logits.new_tensor([one.frequency_penalty for one in settings])
    counts = torch.cat([one.completion_counts() for one in found]).to(logits.device)
    places, entries = _places_of(rows, completions, logits.device)
    return sampling.penalise_occurrences(logits, places, counts, presence[entries], frequency[entries])


def _places_of(
    rows: Sequence[int], ids: Sequence[torch.Tensor], device: torch.device
) -> tuple[Places, torch.Tensor]:
    """The places of the ids in each row, and which of the rows each place is in: an index into `rows`, `[n]`."""
    entries = torch.repeat_interleave(torch.tensor([len(one) for one in ids]))
    places = Places(torch.tensor(rows)[entries].to(device), torch.cat(list(ids)).to(device))
    return places, entries.to(device)


def _held_back(logits: torch.Tensor, runs: Sequence[Run], eos_ids: Collection[int]) -> torch.Tensor:
    # A tokenizer may name an end that the model has no logit for.
    ends = [token_id for token_id in eos_ids if token_id < logits.shape[-1]]
    entries = [(row, token_id) for row, run in enumerate(runs) if run.holds_back_ends for token_id in ends]
    if not entries:
        return logits
    rows, ids = zip(*entries, strict=True)
    return sampling.hold_back(logits, _places(logits, rows, ids))


def _places(logits: torch.Tensor, rows: Sequence[int], ids: Sequence[int]) -> Places:
    return Places(torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))


def _fail_rows_without_distribution(probabilities: torch.Tensor, runs: Sequence[Run]) -> None:
    # An id out of range would end the engine for everybody, so such rows get any distribution at all.
    broken = ~torch.isfinite(probabilities.sum(-1))
    for row in broken.nonzero().flatten().tolist():
        run = runs[row]
        cause = "; its steering is too strong" if run.steered_rows else ""
        run.fail(NotFiniteError(f"the logits of token {run.step} are not finite{cause}"))
        probabilities[row] = 1.0 / probabilities.shape[-1]
