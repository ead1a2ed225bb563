"""Pivot events: the decisions from which vectors are made, and how they are put into groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.records import PivotRecord

MIN_SHARED_CONTEXT = 2
"""A group's contexts must end with this many equal ids: a trigger on a single token would fire almost anywhere."""


@dataclass(frozen=True, slots=True)
class PivotEvent:
    """One decision: the better and the worse token at the step after a prefix.

    Attributes:
        prefix_ids: Prompt and completion before the decision; the pivot is steered at the row of the last id.
        chosen_id: The better token.
        rejected_id: The worse token.
        weight: |effect| of the pivot on P(success).
    """

    prefix_ids: tuple[int, ...]
    chosen_id: int
    rejected_id: int
    weight: float

    @property
    def context(self) -> tuple[int, ...]:
        """The last ids before the decision, as they are recorded in a vector file."""
        return self.prefix_ids[-MAX_CONTEXT_TOKENS:]


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Alike decisions that one vector serves.

    Attributes:
        events: The decisions.
        min_match: How many ids all their contexts share at the end.
    """

    events: tuple[PivotEvent, ...]
    min_match: int


def events_of_run(ledger: LedgerReader) -> list[PivotEvent]:
    """The pivots of a run as events, in the order of the ledger."""
    return [_event(ledger, pivot) for pivot in ledger.pivots()]


def _event(ledger: LedgerReader, pivot: PivotRecord) -> PivotEvent:
    completion = ledger.completion(pivot.completion_id)
    assert completion is not None  # noqa: S101 -- the ledger's foreign keys hold this
    prefix = (*completion.prompt_ids, *completion.ids[: pivot.position])
    return PivotEvent(prefix, pivot.chosen_id, pivot.rejected_id, abs(pivot.delta))


def group_events(
    events: Sequence[PivotEvent], min_events: int, decode: Callable[[Sequence[int]], str]
) -> tuple[list[EventGroup], list[str]]:
    """Groups decisions between the same two tokens, then what is left by the ids before it.

    Args:
        events: The decisions.
        min_events: Fewest decisions of a group.
        decode: Turns ids into text, for the sentences.

    Returns:
        Groups of at least `min_events` events with a shared context, the largest first, and one sentence for what
        was left out and why.
    """
    groups: list[EventGroup] = []
    left_out: list[str] = []
    remaining: list[PivotEvent] = []
    for members in _by_key(events, lambda event: (event.chosen_id, event.rejected_id)).values():
        shared = shared_suffix([event.context for event in members])
        if len(members) < min_events:
            remaining += members
        elif shared < MIN_SHARED_CONTEXT:
            chosen, rejected = decode([members[0].chosen_id]), decode([members[0].rejected_id])
            left_out.append(
                f"{len(members)} decisions between {chosen!r} and {rejected!r}: fewer than {MIN_SHARED_CONTEXT} "
                "equal tokens stand before all of them, so no context can tell where to act"
            )
        else:
            groups.append(EventGroup(tuple(members), shared))
    rare = 0
    for members in _by_key(remaining, lambda event: event.context[-MIN_SHARED_CONTEXT:]).values():
        if len(members) >= min_events and len(members[0].context) >= MIN_SHARED_CONTEXT:
            groups.append(EventGroup(tuple(members), shared_suffix([event.context for event in members])))
        else:
            rare += len(members)
    if rare:
        left_out.append(f"{rare} decisions of kinds that were seen fewer than {min_events} times")
    return sorted(groups, key=lambda group: -len(group.events)), left_out


def _by_key(
    events: Sequence[PivotEvent], key: Callable[[PivotEvent], Hashable]
) -> dict[Hashable, list[PivotEvent]]:
    groups: dict[Hashable, list[PivotEvent]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def shared_suffix(contexts: Sequence[Sequence[int]]) -> int:
    """How many ids all contexts have in common at their end."""
    length = 0
    for ids in zip(*(reversed(context) for context in contexts), strict=False):
        if len(set(ids)) > 1:
            break
        length += 1
    return length
