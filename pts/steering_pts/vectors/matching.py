"""Places where nothing is decided, matched to pivots: what a pivot's states are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.records import CompletionRecord
from steering_pts.vectors.events import PivotEvent


@dataclass(frozen=True, slots=True)
class QuietPlace:
    """A step of a completion at which certainly nothing is decided.

    Attributes:
        completion: The completion.
        position: Index of the token that came there, and so the step.
    """

    completion: CompletionRecord
    position: int

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Prompt and completion before the step; the last id's row is the one that predicts."""
        return (*self.completion.prompt_ids, *self.completion.ids[: self.position])

    @property
    def context(self) -> tuple[int, ...]:
        """The last ids before the step, as many as a vector file records of a pivot's."""
        generated = self.completion.ids[max(0, self.position - MAX_CONTEXT_TOKENS) : self.position]
        missing = MAX_CONTEXT_TOKENS - len(generated)
        return (*(self.completion.prompt_ids[-missing:] if missing else ()), *generated)


def decides_nothing(probability: float, tau: float) -> bool:
    """Whether a step can't be pivotal, whatever follows, because one token is all but certain there.

    The decision variance of a step is Var(V) over its tokens, V being P(success) after a token. Values are in [0, 1],
    so with one token of probability pi > 1/2 it is at most pi (1 - pi): reached when that token decides one way and
    all others the other. Below tau^2 the step is not pivotal; at tau = 0.2 that is from pi = 0.958 on.
    """
    return probability > 0.5 and probability * (1 - probability) < tau * tau


def quiet_places(ledger: LedgerReader, tau: float) -> Iterator[QuietPlace]:
    """All steps of a run's scored completions that `decides_nothing` certifies, by completion and position."""
    completions = {completion.id: completion for completion in ledger.completions()}
    for score in ledger.scores():
        completion = completions.get(score.completion_id)
        if completion is None:
            continue
        for position, probability in enumerate(score.probabilities):
            if decides_nothing(probability, tau):
                yield QuietPlace(completion, position)


def matched_places(events: Sequence[PivotEvent], places: Iterable[QuietPlace]) -> list[QuietPlace | None]:
    """For every event a quiet place of about the same depth, none of them taken twice.

    The nearest depth in the event's own completion is taken first, where everything but the depth is equal; without
    one left there, the nearest in another completion of the problem, then in any of the run. Of equally near ones the
    earlier is taken. The events choose in their order, so the answer is always the same.

    Args:
        events: The decisions.
        places: Quiet places of the run, in a fixed order.

    Returns:
        A place for each event, None for events for which none is left.
    """
    of_completion: dict[str, _Free] = {}
    of_problem: dict[str, _Free] = {}
    of_run = _Free()
    for place in places:
        of_completion.setdefault(place.completion.id, _Free()).add(place)
        of_problem.setdefault(place.completion.problem_id, _Free()).add(place)
        of_run.add(place)
    taken: set[tuple[str, int]] = set()
    matched: list[QuietPlace | None] = []
    for event in events:
        found = None
        for free in (of_completion.get(event.completion_id), of_problem.get(event.problem_id), of_run):
            found = None if free is None else free.nearest(event.position, taken)
            if found is not None:
                taken.add((found.completion.id, found.position))
                break
        matched.append(found)
    return matched


class _Free:
    """Places by their depth, of which those taken are forgotten as they are met."""

    def __init__(self) -> None:
        self._at: dict[int, list[QuietPlace]] = {}
        self._deepest = 0

    def add(self, place: QuietPlace) -> None:
        self._at.setdefault(place.position, []).append(place)
        self._deepest = max(self._deepest, place.position)

    def nearest(self, depth: int, taken: set[tuple[str, int]]) -> QuietPlace | None:
        """The free place nearest to a depth, the shallower of equals; None without any."""
        if not self._at:
            return None
        for distance in range(max(depth, self._deepest - depth, 0) + 1):
            for at in dict.fromkeys((depth - distance, depth + distance)):
                while waiting := self._at.get(at):
                    if (waiting[0].completion.id, waiting[0].position) not in taken:
                        return waiting[0]
                    waiting.pop(0)
                self._at.pop(at, None)
        return None
