"""Choosing tokens: pure functions on logits, and random numbers that belong to a request alone.

A token is chosen by inverting the cumulative distribution at one uniform number, which depends only on the request's
seed and the step. So a seeded request draws the same tokens alone and in any batch, as far as its logits are the same
(docs/architecture.md says what holds where), and no device generator has to be shared.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import torch

_UNIFORM_BITS = (
    52  # one bit fewer than a double's mantissa, so that the largest value stays below 1 when scaled
)


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
) -> torch.Tensor:
    """What the sampler draws from: the distribution after temperature, top-k, top-p and min-p (in this order).

    Args:
        logits: `[rows, vocab]`, any floating dtype.
        temperature: `[rows]`; 0 means greedy, for which the distribution at temperature 1 is returned.
        top_k: `[rows]` integers; 0 keeps all tokens. Ties with the k-th token are kept.
        top_p: `[rows]`; the smallest set of most likely tokens whose mass reaches it is kept, at least one token.
        min_p: `[rows]`; tokens are kept that are at least this share as likely as the most likely one; 0 keeps all.

    Returns:
        Probabilities `[rows, vocab]`, float64, each row summing to 1.
    """
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0).double()[:, None]
    probabilities = torch.softmax(scaled, dim=-1)
    limited = torch.nonzero((temperature > 0) & ((top_k > 0) | (top_p < 1))).flatten()
    if len(limited):
        probabilities[limited] = _limit(probabilities[limited], top_k[limited], top_p[limited])
    floored = torch.nonzero((temperature > 0) & (min_p > 0)).flatten()
    if len(floored):
        probabilities[floored] = _floor(probabilities[floored], min_p[floored])
    return probabilities


def _limit(probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    vocab = probabilities.shape[-1]
    ordered = probabilities.sort(dim=-1, descending=True).values
    k = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab).long()
    threshold = ordered.gather(-1, (k - 1)[:, None])
    kept = torch.where(probabilities >= threshold, probabilities, 0.0)
    kept /= _total(kept)
    ordered, order = kept.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    nucleus = (before < top_p.double()[:, None]) | (top_p >= 1)[:, None]
    nucleus[:, 0] = True
    kept = torch.zeros_like(kept).scatter(-1, order, torch.where(nucleus, ordered, 0.0))
    return kept / _total(kept)


def _floor(probabilities: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    least = min_p.double()[:, None] * probabilities.amax(-1, keepdim=True)
    kept = torch.where(probabilities >= least, probabilities, 0.0)
    return kept / _total(kept)


def _total(probabilities: torch.Tensor) -> torch.Tensor:
    # Not `sum`: of a single long row it adds up shares of several threads, and gives other bits than among many rows.
    return probabilities.cumsum(-1)[:, -1:]


def ban(probabilities: torch.Tensor, banned_ids: torch.Tensor) -> torch.Tensor:
    """The distribution `[vocab]` given that none of `banned_ids` is drawn; unchanged when nothing else could be."""
    allowed = probabilities.clone()
    allowed[banned_ids] = 0.0
    total = allowed.sum()
    return allowed / total if total > 0 else probabilities


def most_likely(probabilities: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens, most likely first, the lower id first among equals.

    Args:
        probabilities: `[rows, vocab]` float64.
        count: How many of each row, at least 1; `vocab` of them are all.

    Returns:
        Ids `[rows, count]` int64, and the natural logarithm of their probabilities `[rows, count]` float32: -infinity
        where a row has fewer tokens with a probability above 0.
    """
    count = min(count, probabilities.shape[-1])
    values, ids = probabilities.topk(count, dim=-1)
    least = values[:, -1:]
    tied = ((least[:, 0] > 0) & ((probabilities >= least).sum(-1) > count)).nonzero().flatten()
    ids = ids.sort(dim=-1).values
    values, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    if len(tied):  # `topk` takes any of those that are as likely as the last one
        ordered, order = probabilities[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], ids[tied] = ordered[:, :count], order[:, :count]
    return ids, values.log().float()


def draw(
    probabilities: torch.Tensor, temperature: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row.

    Args:
        probabilities: `[rows, vocab]` float64, from `token_probabilities`.
        temperature: `[rows]`; rows with 0 take the most likely token (the first of equals).
        uniforms: `[rows]` float64 in [0, 1).

    Returns:
        Ids `[rows]` int64, and the natural logarithm of their probabilities `[rows]` float32.
    """
    cumulative = probabilities.cumsum(-1)
    # Scaling by the row's own total keeps the draw inside the distribution when rounding left it short of 1.
    ids = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    ids = torch.where(temperature > 0, ids, probabilities.argmax(-1))
    return ids, probabilities.gather(-1, ids[:, None]).squeeze(-1).log().float()
