"""What steering does in one forward, on the host: the decisions of all requests, and the same as numbers per block."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from steering_engine.steering.ops import Effect
from steering_engine.steering.plan import CompiledRule
from steering_engine.steering.state import Candidate, RowAct
from steering_engine.steering.triggers import Reading

ALWAYS = 0
"""The gate that is always open."""
FIRST_QUESTION = 1
"""The gate of the first question; the others follow."""


class Entry(NamedTuple):
    """What a rule does to a row at one block.

    Attributes:
        row: Packed row.
        place: How many entries of the same row come before.
        slot: Slot of the direction.
        gate: The gate that lets the rule act.
        exclusive: Whether a rule that acted on the row before keeps this one from it.
        effect: What is done.
    """

    row: int
    place: int
    slot: int
    gate: int
    exclusive: bool
    effect: Effect


class Question(NamedTuple):
    """What a trigger asks about a row: who asks, which of its rules, and what is read."""

    owner: Hashable
    rule_index: int
    row: int
    reading: Reading


class BatchPlan:
    """What steering does in one forward, as numbers.

    Attributes:
        entries: By block; rows ascend, and the entries of a row stand in the order in which its rules act.
        questions: What is asked, in the order of the gates.
    """

    def __init__(self) -> None:
        self.entries: dict[int, list[Entry]] = {}
        self.questions: list[Question] = []

    def add_act(self, batch_row: int, act: RowAct) -> None:
        """Adds what acts for certain."""
        self._add(batch_row, act.rule, act.layers, ALWAYS, exclusive=False)

    def add_candidates(
        self, batch_row: int, candidates: Sequence[Candidate], *, exclusive: bool, owner: Hashable
    ) -> None:
        """Adds a row that asks questions; `owner` says whose answers they are."""
        taken: set[int] = set()  # blocks where a rule acts for certain, so that no later one does
        for candidate in candidates:
            rule = candidate.act.rule
            gate = ALWAYS
            if candidate.asks and rule.trigger is not None and isinstance(rule.trigger.condition, Reading):
                gate = FIRST_QUESTION + len(self.questions)
                self.questions.append(Question(owner, rule.index, batch_row, rule.trigger.condition))
            if candidate.acts:
                gate = ALWAYS
            free = [layer for layer in rule.layers if layer not in taken]
            self._add(batch_row, rule, free, gate, exclusive=exclusive)
            if exclusive and gate == ALWAYS:
                taken.update(rule.layers)

    def _add(
        self, row: int, rule: CompiledRule, layers: Sequence[int], gate: int, *, exclusive: bool
    ) -> None:
        for layer, slot, effect in zip(rule.layers, rule.slots, rule.effects, strict=True):
            if layer in layers:
                entries = self.entries.setdefault(layer, [])
                place = entries[-1].place + 1 if entries and entries[-1].row == row else 0
                entries.append(Entry(row, place, slot, gate, exclusive, effect))


class _Open(NamedTuple):
    candidates: Sequence[Candidate]
    exclusive: bool
    owner: Hashable


class BatchDecisions:
    """What the requests of a batch decided about their rows; rows are added in ascending order.

    In most forwards these are the decisions of the one before, and then nothing has to be made of them again.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, Sequence[RowAct] | _Open]] = []
        self._asks = False

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add_acts(self, batch_row: int, acts: Sequence[RowAct]) -> None:
        """Adds a decided row, which stands at `batch_row` in the forward's packed rows."""
        self._rows.append((batch_row, acts))

    def add_candidates(
        self, batch_row: int, candidates: Sequence[Candidate], *, exclusive: bool, owner: Hashable
    ) -> None:
        """Adds a row that asks questions; `owner` says whose answers they are."""
        self._rows.append((batch_row, _Open(candidates, exclusive, owner)))
        self._asks = True

    def repeat(self, earlier: BatchDecisions) -> bool:
        """Whether a forward does exactly what it did after `earlier`. One that asks gets answers of its own."""
        return not self._asks and self._rows == earlier._rows

    def plan(self) -> BatchPlan:
        """The same as numbers.

        The entries of a row follow the order of its own rules, whatever else is in the batch; so the result for a row
        is the same in any batch.
        """
        plan = BatchPlan()
        for row, decided in self._rows:
            if isinstance(decided, _Open):
                plan.add_candidates(row, decided.candidates, exclusive=decided.exclusive, owner=decided.owner)
            else:
                for act in decided:
                    plan.add_act(row, act)
        return plan
