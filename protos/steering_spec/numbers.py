"""The parts of admission that judge one number."""

from __future__ import annotations

from collections.abc import Iterator

from steering_spec import limits
from steering_spec.facts import ModelFacts
from steering_spec.violation import Violation


def count_violations(
    field: str, value: int, least: int = 1, most: int = limits.INT32_MAX
) -> Iterator[Violation]:
    """A count outside `[least, most]`."""
    if not least <= value <= most:
        yield Violation(field, f"{value} is outside [{least}, {most}]")


def range_violations(field: str, value: float, least: float, most: float) -> Iterator[Violation]:
    """A number outside `[least, most]`, or none at all (NaN)."""
    if not least <= value <= most:
        yield Violation(field, f"{value} is outside [{least:g}, {most:g}]")


def token_violations(field: str, token_id: int, model: ModelFacts | None) -> Iterator[Violation]:
    """A token id outside the vocabulary; without a model, one that does not fit into 32 bits."""
    vocab_size = limits.INT32_MAX if model is None else model.vocab_size
    if not 0 <= token_id < vocab_size:
        yield Violation(field, f"{token_id} is outside [0, {vocab_size})")
