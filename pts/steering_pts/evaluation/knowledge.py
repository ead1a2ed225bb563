"""What a run knows that an evaluation can use: its vectors, and which token is better where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steering_engine.errors import VectorFileError
from steering_engine.vectors.file import load_vector
from steering_pts.evaluation.forcing import Decision, KnownAlternatives, known_alternatives
from steering_pts.evaluation.served import ServedVector
from steering_pts.ledger.export import read_pivots

_INDEX = "index.json"


def decisions_of(pivots: Path) -> list[Decision]:
    """The decisions between two tokens of a run's `pivots.jsonl`.

    Raises:
        LedgerError: It can't be read.
    """
    return [
        Decision(
            (*line["prompt_ids"], *line["prefix_ids"]),
            line["chosen_id"],
            line["rejected_id"],
        )
        for line in read_pivots(pivots)
    ]


def known_of(
    vectors: Sequence[ServedVector], decisions: Sequence[Decision], candidates: Path
) -> tuple[list[KnownAlternatives], list[str]]:
    """The better tokens that a run knows of, and a sentence for each vector of which it knows none.

    Args:
        vectors: The vectors.
        decisions: Those of the run.
        candidates: The run's folder of candidates, whose files have contexts where a vector's own file has none.
    """
    known: list[KnownAlternatives] = []
    without: list[str] = []
    for one in vectors:
        metadata, contexts = one.vector.metadata, one.vector.contexts
        least = metadata.context_min_match
        if not contexts:
            contexts, least = _contexts_of_group(candidates, one.name)
        found = known_alternatives(contexts, least, decisions)
        if found is None:
            without.append(
                f"forced_alternative: no token is known to be the better one wherever {one.name} acts, "
                "so nothing is forced there"
            )
        else:
            known.append(found)
    return known, without


def _contexts_of_group(candidates: Path, name: str) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The contexts of the group of that name, and how much of them has to match; none where there is no such group."""
    try:
        index: Any = json.loads((candidates / _INDEX).read_text(encoding="utf-8"))
        files = next(group["files"] for group in index["groups"] if group["name"] == name)
        vector = load_vector(candidates / next(iter(files.values())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, VectorFileError):
        return (), 0
    return vector.contexts, vector.metadata.context_min_match
