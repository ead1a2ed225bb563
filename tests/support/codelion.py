"""Readers of codelion/pts data sets as other programs have them, written from the lists of their fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

PIVOT_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "model_id": str,
    "query": str,
    "pivot_context": str,
    "pivot_token": str,
    "pivot_token_id": int,
    "prob_before": float,
    "prob_after": float,
    "prob_delta": float,
    "is_positive": bool,
    "task_type": str,
    "timestamp": str,
}
PATTERNS = (
    "depth_and_thoroughness",
    "numerical_accuracy",
    "self_correction",
    "exploration",
    "organization",
)


def load_pivots(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events of `pts`, with all their base fields."""
    events = [json.loads(line) for line in lines]
    for event in events:
        assert event.get("schema_version", "1.0") in {"1.0", "2.0"}
        for name, kind in PIVOT_FIELDS.items():
            assert isinstance(event[name], kind), (name, event[name])
        assert event["is_positive"] == (event["prob_delta"] > 0)
        assert abs(event["prob_after"] - event["prob_before"] - event["prob_delta"]) < 1e-9
        assert isinstance(event.get("rejected_token_id"), int | None)
    return events


def load_pairs(lines: Iterable[str], version: int) -> list[dict[str, Any]]:
    """The preferences of `pts-dpo-pairs`."""
    pairs = [json.loads(line) for line in lines]
    for pair in pairs:
        assert pair["prompt"]
        assert pair["chosen"] != pair["rejected"]
        about = pair["metadata"]
        assert isinstance(about["original_query"], str)
        assert isinstance(about["prob_delta"], float)
        assert isinstance(about["task_type"], str)
        if version == 2:
            assert about["prob_chosen"] > about["prob_rejected"]
            assert about["event_id"]
            assert about["category"]
            assert isinstance(about["counterpart_verified"], bool)
    return pairs


class AutoThinkVectors:
    """Steering vectors as optillm's AutoThink keeps them: by pattern, and by the ids of their contexts."""

    def __init__(self, lines: Iterable[str], tokenizer: Any) -> None:
        self.by_pattern: dict[str, list[dict[str, Any]]] = {}
        self.by_context: dict[tuple[int, ...], dict[str, Any]] = {}
        for line in lines:
            item = json.loads(line)
            if not all(name in item for name in ("pivot_context", "steering_vector", "reasoning_pattern")):
                continue
            assert isinstance(item["steering_vector"], list)
            self.by_pattern.setdefault(item["reasoning_pattern"], []).append(item)
            context = tokenizer.encode(item["pivot_context"], add_special_tokens=False)
            self.by_context[tuple(context[-256:])] = item
