"""Seeds that depend on what is drawn, never on when or where it is drawn."""

from __future__ import annotations

import hashlib
import json


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """The seed of one draw of a run.

    A rollout's parts are its problem, completion, position, arm and index, so its tokens depend
    neither on the batch it ran in, nor on where a run was resumed, nor on the number of workers.

    Args:
        run_seed: the seed of the run.
        parts: what is drawn. ``1`` and ``"1"`` are different parts, and so are ``("a", "b")`` and
            ``("ab",)``.

    Returns:
        63 bits of the SHA-256 of the seed and the parts: an integer in [0, 2**63), which fits a
        signed 64-bit field.
    """
    digest = hashlib.sha256(json.dumps([run_seed, *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
