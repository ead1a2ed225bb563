"""The residual stream at the rows of steps: one forward for a completion, however many of its steps are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from steering_engine.loading import LoadedModel
from steering_pts.ledger import LedgerReader
from steering_pts.seeds import derive_seed
from steering_pts.vectors.events import events_of_run
from steering_pts.vectors.reading import Reading, record_rows
from steering_pts.vectors.steps import StepLabel, StepTable, steps_of_run

MOST_ORDINARY = 10_000
"""Ordinary steps that are learned from: enough to see one false firing in 500 twenty times."""

Place = tuple[int, int]
"""Index of a completion, and of the generated token that the step predicts."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class StepStates:
    """The residual stream at some steps of a table.

    Attributes:
        steps: Indices of the steps.
        states: `[steps, hidden]` float32 on the CPU by block.
    """

    steps: tuple[int, ...]
    states: dict[int, torch.Tensor]

    def of(self, values: Sequence[Value]) -> list[Value]:
        """Of values for each step of the table, those of the steps that were recorded."""
        return [values[step] for step in self.steps]


@dataclass(frozen=True, slots=True, eq=False)
class LearnedFrom:
    """The steps of a run that triggers learn from.

    Attributes:
        table: All steps of the run.
        decisions: Prefixes of the run's decisions.
        recorded: The residual stream at those that are learned from.
    """

    table: StepTable
    decisions: list[tuple[int, ...]]
    recorded: StepStates

    @property
    def problem_ids(self) -> list[str]:
        """The problem of each recorded step."""
        return self.recorded.of(self.table.problem_ids)


def learn_from(ledger: LedgerReader, loaded: LoadedModel, blocks: Sequence[int]) -> LearnedFrom:
    """Labels a run's steps and records those that triggers learn from, at these blocks."""
    table = steps_of_run(ledger, loaded)
    decisions = [event.prefix_ids for event in events_of_run(ledger)]
    return LearnedFrom(table, decisions, record_steps(loaded, table, blocks, decisions))


def record_steps(
    loaded: LoadedModel,
    table: StepTable,
    blocks: Sequence[int],
    decisions: Iterable[Sequence[int]] = (),
    most_ordinary: int = MOST_ORDINARY,
    on_done: Callable[[int], None] | None = None,
) -> StepStates:
    """Records the steps of a run that can be learned from.

    Those are the pivotal ones, the run's decisions, and ordinary ones: of these first what only draws could tell, for
    such steps are the hardest to tell apart, and at least half of the most that are taken from the certified ones.

    Args:
        loaded: The model.
        table: The run's steps.
        blocks: Blocks to record.
        decisions: Prefixes of the run's decisions, whatever their labels.
        most_ordinary: Ordinary steps at most; which of them hangs on the steps alone.
        on_done: Hears the tokens of every completion that is done.
    """
    found = (table.find(prefix) for prefix in decisions)
    chosen = {index for index in found if index is not None}
    by_draws: list[int] = []
    certified: list[int] = []
    for index, step in enumerate(table.steps):
        if step.label is StepLabel.PIVOTAL:
            chosen.add(index)
        elif step.label is StepLabel.ORDINARY:
            (certified if step.certified else by_draws).append(index)
    for kind, most in ((by_draws, most_ordinary // 2), (certified, most_ordinary)):
        kind.sort(key=lambda index: derive_seed(0, index))
        del kind[max(most - (len(by_draws) if kind is certified else 0), 0) :]
    steps = tuple(sorted({*chosen, *by_draws, *certified}))
    places = [(table.steps[index].completion, table.steps[index].position) for index in steps]
    return StepStates(steps, step_states(loaded, table.completions, places, blocks, on_done))


def step_states(
    loaded: LoadedModel,
    completions: Sequence[tuple[Sequence[int], Sequence[int]]],
    places: Sequence[Place],
    blocks: Sequence[int],
    on_done: Callable[[int], None] | None = None,
) -> dict[int, torch.Tensor]:
    """resid_post at the row of each step, the one that predicts its token.

    Args:
        loaded: The model.
        completions: Pairs of prompt ids and generated ids.
        places: The steps.
        blocks: Blocks to record.
        on_done: Hears the tokens of every completion that is done.

    Returns:
        `[places, hidden]` float32 on the CPU for each block.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for index, (completion, _) in enumerate(places):
        wanted[completion].append(index)
    readings = []
    for completion, indices in wanted.items():
        prompt, ids = completions[completion]
        rows = tuple(len(prompt) - 1 + places[index][1] for index in indices)
        # What follows the last row that is read would only be computed and thrown away.
        readings.append(Reading((*prompt, *ids)[: max(rows) + 1], rows))
    found = record_rows(loaded, readings, blocks, on_done=on_done)
    order = torch.tensor([index for indices in wanted.values() for index in indices], dtype=torch.int64)
    back = torch.argsort(order)
    return {block: rows[back] for block, rows in found.items()}
