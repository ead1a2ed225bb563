"""Oracles for models with random weights, which know no mathematics."""

from __future__ import annotations

from steering_pts.data import Problem


def starts_in_ascii(problem: Problem, completion: str) -> bool:
    """Whether the first character is ASCII: about one random byte token in two decides it for good."""
    return completion[:1].isascii() and completion != ""
