"""Samples a batch: every row from its own request's distribution, as if the row were alone.

The mathematics is in `steering_engine.engine.sampling`; here the settings of the requests become its tensors. Rows
whose request wants no biases, penalties or alternatives don't pay for those that do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from steering_engine.engine import sampling
from steering_engine.engine.run import Run
from steering_engine.engine.sampling import Places
from steering_engine.engine.scratch import scratch
from steering_engine.errors import NotFiniteError
from steering_spec import TokenLogprob

_CACHED = 1 << 17  # probabilities of a thread: 1 MiB


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
    size = _rows_at_once(logits)
    starts = range(0, len(runs), size)
    parts = [_sample(logits[start : start + size], runs[start : start + size], eos_ids) for start in starts]
    ids, logprobs = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(logprobs)


def _rows_at_once(logits: torch.Tensor) -> int:
    """Rows whose probabilities stay in the caches of a CPU from one pass over them to the next."""
    rows, vocab = logits.shape
    return rows if logits.device.type != "cpu" else max(1, _CACHED // vocab) * torch.get_num_threads()


def _sample(
    logits: torch.Tensor, runs: Sequence[Run], eos_ids: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = [run.request.sampling for run in runs]
    temperature = torch.tensor([one.temperature for one in settings], dtype=torch.float64)
    probabilities = sampling.token_probabilities(
        _adjusted(logits, runs, eos_ids),
        temperature,
        torch.tensor([one.top_k for one in settings]),
        torch.tensor([one.top_p for one in settings], dtype=torch.float64),
        torch.tensor([one.min_p for one in settings], dtype=torch.float64),
        out=scratch("probabilities", logits.shape, logits, torch.float64),
    )
    for row, run in enumerate(runs):
        if run.request.banned_first_ids and run.step == 0:
            banned = torch.tensor(run.request.banned_first_ids, device=logits.device)
            left = sampling.ban(probabilities[row], banned)
            if left[banned].any():  # the filters left nothing else, so they give way
                adjusted = _adjusted(logits[row : row + 1], [run], eos_ids)[0]
                left = sampling.unfiltered_without(adjusted, float(temperature[row]), banned)
            probabilities[row] = left
    _leave_alternatives(probabilities, runs)
    uniforms = torch.tensor([run.uniform() for run in runs], dtype=torch.float64)
    ids, logprobs = sampling.draw(probabilities, temperature, uniforms)
    for row in logprobs.isnan().nonzero().flatten().tolist():
        run = runs[row]
        cause = "; its steering is too strong" if run.steered_rows else ""
        run.fail(NotFiniteError(f"the logits of token {run.step} are not finite{cause}"))
    return ids, logprobs


def _leave_alternatives(probabilities: torch.Tensor, runs: Sequence[Run]) -> None:
    asking = [row for row, run in enumerate(runs) if run.request.sampling.top_logprobs]
    if not asking:
        return
    most = max(runs[row].request.sampling.top_logprobs for row in asking)
    ids, logprobs = sampling.most_likely(probabilities[asking], most)
    for row, *found in zip(asking, ids.tolist(), logprobs.tolist(), strict=True):
        run = runs[row]
        possible = [TokenLogprob(*one) for one in zip(*found, strict=True) if one[1] > -math.inf]
        run.alternatives = tuple(possible[: run.request.sampling.top_logprobs])


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
