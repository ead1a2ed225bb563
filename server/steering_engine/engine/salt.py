"""Salted token ids for the hashes of cache pages: a steered row must never serve a request that steers otherwise."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping

from steering_engine.steering.plan import SteeringPlan


def salted_ids(
    ids: list[int], plan: SteeringPlan | None, page_tokens: int, marks: Mapping[int, int]
) -> list[int]:
    """The ids to hash in place of `ids`: from the page of the first row that may be steered, mixed with the salt.

    The cached keys and values of a row depend on all rows before it, so everything from the first steered row on
    belongs to this steering alone; whole pages before it are shared with everybody. The library hashes ids as signed
    32-bit integers; each is combined (xor) with 32 bits drawn from the salt and its position, so two different salts
    agree on a page with probability 2 ** (-32 * page_tokens).

    Args:
        ids: Ids of the rows.
        plan: How they are steered.
        page_tokens: Tokens of a page.
        marks: What the forward itself decided on rows, as 32 bits. Equal ids under equal salts may still be steered
            differently there, by as little as rounding that depends on the batch; so it is mixed in too.
    """
    if plan is None or plan.first_row is None:
        return ids
    first = plan.first_row // page_tokens * page_tokens
    tail = len(ids) - first
    if tail <= 0:
        return ids
    mask = array("i")
    mask.frombytes(hashlib.shake_256(plan.cache_salt).digest(4 * tail))
    salted = ids[:first] + [token_id ^ bits for token_id, bits in zip(ids[first:], mask, strict=True)]
    for row, bits in marks.items():
        if first <= row < len(ids):
            salted[row] ^= bits - (1 << 32) if bits >> 31 else bits
    return salted
