"""Choosing tokens: pure functions on logits, and random numbers that belong to a request alone.

A token is chosen by inverting the cumulative distribution at one uniform number, which depends only on the request's
seed and the step. So a seeded request draws the same tokens alone and in any batch, as far as its logits are the same
(docs/architecture.md says what holds where), and no device generator has to be shared.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from steering_engine.engine.scratch import scratch

_UNIFORM_BITS = (
    52  # one bit fewer than a double's mantissa, so that the largest value stays below 1 when scaled
)
_CANDIDATES = (256, 4096, 65_536)  # how many tokens are sorted for a nucleus, until it is in them
_LEAST_TEMPERATURE = 1e-200
_TIE = 1 - 1e-12  # sums of equal shares (0.2 + 0.2 + 0.2) end a little beside the bound that they reach (0.6)


def uniform(seed: int, step: int) -> float:
    """The request's random number in [0, 1) for a step."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, step), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / float(1 << _UNIFORM_BITS)


class Places(NamedTuple):
    """Entries of logits `[rows, vocab]`: their rows and their token ids, `[n]` int64 each."""

    rows: torch.Tensor
    ids: torch.Tensor


def add_bias(logits: torch.Tensor, places: Places, bias: torch.Tensor) -> torch.Tensor:
    """`l + bias`.

    Args:
        logits: `[rows, vocab]`.
        places: The n entries that change, none of them twice.
        bias: `[n]`.

    Returns:
        New logits; all other entries have their exact values.
    """
    return logits.index_put(places, logits[places] + bias)


def penalise_repetition(logits: torch.Tensor, places: Places, penalty: torch.Tensor) -> torch.Tensor:
    """`l / penalty` where l > 0, `l * penalty` elsewhere (Keskar et al. 2019, arXiv:1909.05858, as in transformers).

    Args:
        logits: `[rows, vocab]`.
        places: The n entries of tokens that are in their row's prompt or completion; one that is there twice is
            penalised once.
        penalty: `[n]`, above 0; 1 changes nothing.

    Returns:
        New logits; all other entries have their exact values.
    """
    values = logits[places]
    return logits.index_put(places, torch.where(values > 0, values / penalty, values * penalty))


def penalise_occurrences(
    logits: torch.Tensor,
    places: Places,
    counts: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> torch.Tensor:
    """`l - frequency * count - presence`; entries with a count of 0 keep their values.

    Args:
        logits: `[rows, vocab]`.
        places: The n entries, none of them twice.
        counts: `[n]` integers, how often the row's completion holds the token.
        presence: `[n]`.
        frequency: `[n]`.

    Returns:
        New logits; all other entries have their exact values.
    """
    return logits.index_put(places, logits[places] - frequency * counts - presence * (counts > 0))


def hold_back(logits: torch.Tensor, places: Places) -> torch.Tensor:
    """Logits `[rows, vocab]` with -infinity at the places: those tokens can't be drawn."""
    return logits.index_put(places, logits.new_tensor(-torch.inf))


def token_probabilities(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the sampler draws from: the distribution after temperature, top-k, top-p and min-p (in this order).

    Rows pay for the filters that they use. A row whose logits are not finite is NaN throughout.

    Args:
        logits: `[rows, vocab]`, any floating dtype. The settings are on the CPU, whatever the device of the logits.
        temperature: `[rows]`; 0 means greedy, for which the distribution at temperature 1 is returned.
        top_k: `[rows]` integers; 0 keeps all tokens. Ties with the k-th token are kept.
        top_p: `[rows]`; the smallest set of most likely tokens whose mass reaches it is kept, at least one token.
        min_p: `[rows]`; tokens are kept that are at least this share as likely as the most likely one; 0 keeps all.
        out: Where the result goes, `[rows, vocab]` float64 on the device of the logits; None makes a new tensor.

    Returns:
        Probabilities `[rows, vocab]`, float64, each row summing to 1.
    """
    scores = scratch("sampling", logits.shape, logits, torch.float64).copy_(logits)
    sampled = temperature > 0
    divisors = _divisors(temperature)
    if bool((divisors != 1).any()):
        scores /= divisors.to(logits.device)[:, None]
    probabilities = torch.softmax(scores, dim=-1, out=out)
    for chosen, setting, keep in (
        (top_k > 0, top_k, _keep_most_likely),
        (top_p < 1, top_p, _keep_nucleus),
        (min_p > 0, min_p, _keep_near_the_top),
    ):
        rows = torch.nonzero(sampled & chosen).flatten()
        if len(rows):
            own, index = setting[rows].to(logits.device), rows.to(logits.device)
            kept = keep(probabilities[index], own[:, None])
            probabilities[index] = kept.div_(_total(kept))
    return probabilities


def _divisors(temperature: torch.Tensor) -> torch.Tensor:
    # Below the least one a quotient could be infinite; the most likely token has all the mass long before that.
    return torch.where(temperature > 0, temperature.double().clamp(min=_LEAST_TEMPERATURE), 1.0)


def _keep_most_likely(probabilities: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    k = top_k.clamp(max=probabilities.shape[-1])
    least = probabilities.topk(int(k.max())).values.gather(-1, k - 1)
    return torch.where(probabilities >= least, probabilities, 0.0)


def _keep_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    vocab = probabilities.shape[-1]
    # Sorting the whole vocabulary takes thirty times as long as finding its few hundred most likely tokens.
    top_p = top_p.double() * _TIE
    for count in (*(few for few in _CANDIDATES if few < vocab // 2), vocab):
        ordered, ids = _most_likely_first(probabilities, count)
        reached = ordered.cumsum(-1)
        if not bool((reached[:, -1:] < top_p).any()):
            break
    before = pad(reached[:, :-1], (1, 0))
    return torch.zeros_like(probabilities).scatter_(-1, ids, torch.where(before < top_p, ordered, 0.0))


def _keep_near_the_top(probabilities: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    least = min_p.double() * probabilities.amax(-1, keepdim=True) * _TIE
    return torch.where(probabilities >= least, probabilities, 0.0)


def _total(probabilities: torch.Tensor) -> torch.Tensor:
    # Not `sum`: of a single long row it adds up shares of several threads, and gives other bits than among many rows.
    return _cumulative(probabilities)[:, -1:]


def _cumulative(probabilities: torch.Tensor) -> torch.Tensor:
    """The cumulative distribution of each row; the result is scratch."""
    out = scratch("sampling", probabilities.shape, probabilities)
    return torch.cumsum(probabilities, -1, out=out)


def _most_likely_first(probabilities: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most likely tokens of each row and their ids, the lower id first among equals above 0."""
    if count == probabilities.shape[-1]:
        return probabilities.sort(dim=-1, descending=True, stable=True)
    top = probabilities.topk(count + 1)
    least = top.values[:, count - 1 : count].clamp(min=math.ulp(0.0))
    if bool((top.values[:, count:] >= least).any()):
        # `topk` takes any of equals, so all that are as likely as the last one have to be looked at.
        top = probabilities.topk(int((probabilities >= least).sum(-1).max()))
    ids = top.indices.sort(-1).values
    ordered, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ordered[:, :count], ids.gather(-1, order[:, :count])


def ban(probabilities: torch.Tensor, banned_ids: torch.Tensor) -> torch.Tensor:
    """The distribution `[vocab]` given that none of `banned_ids` is drawn; unchanged when nothing else could be."""
    allowed = probabilities.clone()
    allowed[banned_ids] = 0.0
    total = allowed.sum()
    return allowed / total if total > 0 else probabilities


def unfiltered_without(logits: torch.Tensor, temperature: float, banned_ids: torch.Tensor) -> torch.Tensor:
    """The distribution `[vocab]` at a temperature given that none of `banned_ids` is drawn, filters aside.

    Made of the logits, so that it is exact where the banned ids have all the mass that a number can tell from 0.

    Args:
        logits: `[vocab]`, finite or -infinity.
        temperature: 0 means greedy, for which the distribution at temperature 1 is returned.
        banned_ids: `[n]`; where nothing else could be drawn, they can.
    """
    scores = logits.double() / _divisors(torch.tensor(temperature)).to(logits.device)
    left = scores.index_fill(-1, banned_ids, -torch.inf)
    return torch.softmax(left if bool(left.isfinite().any()) else scores, dim=-1)


def most_likely(probabilities: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens of each distribution, most likely first, the lower id first among equals.

    Args:
        probabilities: `[rows, vocab]` float64.
        count: How many are asked for, at least 1; n is this or the size of the vocabulary.

    Returns:
        Ids `[rows, n]` int64, and the natural logarithm of their probabilities `[rows, n]` float32; minus infinity says
        that the distribution has no more tokens.
    """
    ordered, ids = _most_likely_first(probabilities, min(count, probabilities.shape[-1]))
    return ids, ordered.log().float()


def draw(
    probabilities: torch.Tensor, temperature: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row.

    Args:
        probabilities: `[rows, vocab]` float64, from `token_probabilities`.
        temperature: `[rows]` on the CPU; rows with 0 take the most likely token (the first of equals).
        uniforms: `[rows]` float64 in [0, 1) on the CPU.

    Returns:
        Ids `[rows]` int64, and the natural logarithm of their probabilities `[rows]` float32: NaN with any id where the
        row is NaN.
    """
    sampled = temperature > 0
    if not bool(sampled.any()):
        ids = _first_of_the_most_likely(probabilities)
    else:
        cumulative = _cumulative(probabilities)
        # Scaling by the row's own total keeps the draw inside the distribution when rounding left it short of 1.
        at = uniforms.to(probabilities.device) * cumulative[:, -1]
        ids = torch.searchsorted(cumulative, at[:, None], right=True).squeeze(-1)
        ids = ids.clamp_(max=probabilities.shape[-1] - 1)  # beyond it where the row is NaN
        if not bool(sampled.all()):
            ids = torch.where(sampled.to(probabilities.device), ids, _first_of_the_most_likely(probabilities))
    return ids, probabilities.gather(-1, ids[:, None]).squeeze(-1).log().float()


def _first_of_the_most_likely(probabilities: torch.Tensor) -> torch.Tensor:
    if probabilities.device.type != "cpu":
        return probabilities.argmax(-1)
    # torch's own takes ten times as long on a CPU, as it is not vectorised.
    return torch.from_numpy(probabilities.numpy().argmax(-1))
