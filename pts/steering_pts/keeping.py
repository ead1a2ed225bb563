"""Sampling of which a kill costs little: what is finished is handed over to be kept while the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from steering_pts.progress import Advance
from steering_pts.rollouts import Rollout, RolloutRequest, RolloutSource

SAVE_SECONDS = 20.0
"""Most seconds that a finished rollout waits to be kept."""
SAVE_EVERY = 1024
"""Most rollouts that are kept at once."""

Keep = Callable[[Sequence[tuple[int, Rollout]]], None]
"""Keeps finished rollouts, each with the index of its request."""


def sample_and_keep(
    source: RolloutSource, requests: Sequence[RolloutRequest], keep: Keep, advance: Advance
) -> None:
    """Samples all requests, and hands every rollout to `keep`, in whatever order they finish.

    What was finished is kept as well when the sampling ends with an error or is interrupted.
    """
    waiting: list[tuple[int, Rollout]] = []
    kept_at = monotonic()

    def flush() -> None:
        nonlocal kept_at
        finished, waiting[:] = waiting[:], []
        if finished:
            keep(finished)
        kept_at = monotonic()

    def on_done(index: int, rollout: Rollout) -> None:
        waiting.append((index, rollout))
        advance(len(rollout.ids))
        if len(waiting) >= SAVE_EVERY or monotonic() - kept_at >= SAVE_SECONDS:
            flush()

    if not requests:
        return
    try:
        source.sample(requests, on_done)
    finally:
        flush()
