"""The part of admission that judges whether rules could meet: `ConflictPolicy.REJECT` refuses those that could.

Rules meet at a row of a block that both could steer. Triggers are taken to fire anywhere, and tokens to be any, so a
request that passes never has a row of a block that is steered twice. A row has one token of its own, so rules that
wait for different tokens don't meet. Where the prompt's length isn't known, only steps are judged, and only what holds
for every length counts: whatever is refused then would be refused with the prompt, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

from steering_spec.clause_rows import FROM_THE_END, at_least, at_most, frame_of, union
from steering_spec.exclusion import tokens_of, without_tokens
from steering_spec.facts import FindVector
from steering_spec.intervals import EVERYTHING, Intervals
from steering_spec.naming import VectorRef
from steering_spec.steering import Phase, Selector, SteeringRule
from steering_spec.violation import Violation


def conflict_violations(
    rules: Mapping[int, SteeringRule],
    prompt_length: int | None = None,
    find_vector: FindVector | None = None,
) -> Iterator[Violation]:
    """Every pair of rules that could steer the same row of the same block.

    Args:
        rules: The rules to judge, by their indices: those whose selectors have no fault.
        prompt_length: Tokens of the prompt; None judges what holds for every length.
        find_vector: Looks vectors up; None, and a vector that is not loaded, leave the blocks of a rule that names none
            unknown, and unknown blocks are taken to be others than those of any other vector or version.
    """
    active = {index: rule for index, rule in rules.items() if rule.strength != 0}
    reaches = {index: _Reach.of(rule.selector, prompt_length) for index, rule in active.items()}
    blocks = {index: _Blocks.of(rule, find_vector) for index, rule in active.items()}
    for later in active:
        for earlier in active:
            if earlier >= later:
                continue
            shared = blocks[later].shared_with(blocks[earlier])
            if shared is not None and reaches[later].meets(reaches[earlier]):
                yield Violation(
                    f"steering.rules[{later}]",
                    f"may steer the same rows of {shared} as rules[{earlier}], which CONFLICT_POLICY_REJECT forbids; "
                    "make the selectors disjoint, or choose another policy",
                )


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks that a rule steers: those of `layers`, or where it is empty, unknown ones of the vector."""

    vector: str
    layers: frozenset[int]

    @classmethod
    def of(cls, rule: SteeringRule, find_vector: FindVector | None) -> _Blocks:
        try:
            ref = VectorRef.parse(rule.vector)
        except ValueError:
            return cls(rule.vector, frozenset(rule.layers))
        facts = None if find_vector is None or rule.layers else find_vector(ref)
        # With its pin: versions of one vector may have other blocks.
        return cls(
            ref.name.removeprefix("vectors/"), frozenset(rule.layers if facts is None else facts.layers)
        )

    def shared_with(self, other: _Blocks) -> str | None:
        """The first block that both steer, in words; None when there is none, or none is known."""
        if self.layers and other.layers:
            shared = self.layers & other.layers
        elif self.vector == other.vector:  # the one that names no block steers every block of the vector
            shared = self.layers | other.layers
            if not shared:
                return f"every block of vector {self.vector!r}"
        else:
            return None
        return f"block {min(shared)}" if shared else None


@dataclass(frozen=True, slots=True)
class _Area:
    """What a selector chooses in one of three areas: before the last prompt row, that row, and after it.

    Attributes:
        rows: Rows that it chooses whatever their token is, apart from the excluded ones.
        token_rows: Rows that it chooses if their token is one of `tokens`.
        tokens: Ids that it chooses.
        excluded_tokens: Ids that it never chooses.
    """

    rows: Intervals
    token_rows: Intervals
    tokens: frozenset[int]
    excluded_tokens: frozenset[int]

    def meets(self, other: _Area) -> bool:
        """Whether both could choose the same row."""
        return (
            self.rows.meets(other.rows)
            or (bool(self.tokens - other.excluded_tokens) and self.token_rows.meets(other.rows))
            or (bool(other.tokens - self.excluded_tokens) and other.token_rows.meets(self.rows))
            or (not self.tokens.isdisjoint(other.tokens) and self.token_rows.meets(other.token_rows))
        )


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a selector chooses; without the prompt's length, the part of it that is certain."""

    areas: tuple[_Area, ...]

    @classmethod
    def of(cls, selector: Selector, prompt_length: int | None) -> _Reach:
        frame = FROM_THE_END if prompt_length is None else frame_of(prompt_length)
        excluded = union(at_most(clause, frame) for clause in without_tokens(selector.exclude))
        rows = union(at_least(clause, frame) for clause in without_tokens(selector.include)) - excluded
        left = EVERYTHING - excluded
        prompt, steps = (tokens_of(selector.include, phase) for phase in (Phase.PROMPT, Phase.GENERATION))
        no_prompt, no_steps = (
            tokens_of(selector.exclude, phase) for phase in (Phase.PROMPT, Phase.GENERATION)
        )
        last = 0  # in both frames
        areas = [
            (last, last + 1, prompt | steps, no_prompt | no_steps),
            (last + 1, inf, steps, no_steps),
        ]
        if frame.first is not None:
            areas.append((frame.first, last, prompt, no_prompt))
        return cls(
            tuple(
                _Area(
                    rows.within(start, end),
                    left.within(start, end),
                    tokens - excluded_tokens,
                    excluded_tokens,
                )
                for start, end, tokens, excluded_tokens in areas
            )
        )

    def meets(self, other: _Reach) -> bool:
        """Whether both could choose the same row."""
        return any(mine.meets(theirs) for mine, theirs in zip(self.areas, other.areas, strict=True))
