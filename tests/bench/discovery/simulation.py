"""The search on planted traces, through the seam that it has on an engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from steering_engine.engine.sampling import uniform
from steering_pts.ledger.records import ConfirmationRecord, RolloutKey
from steering_pts.oracles.base import Verdict
from steering_pts.search import Outcome, Search, Trace
from steering_pts.seeds import derive_seed
from steering_pts.settings import SearchSettings
from steering_pts.statistics import benjamini_hochberg
from tests.bench.discovery.findings import Finding, Searched
from tests.bench.discovery.traces import PlantedTrace


@dataclass(slots=True)
class Cost:
    """Rollouts and generated tokens of one completion."""

    rollouts: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Simulation:
    """Answers a search's questions about planted traces; an answer depends on the seed and the key alone."""

    traces: Sequence[PlantedTrace]
    seed: int
    costs: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    _by_id: dict[str, tuple[PlantedTrace, Trace]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_id = {trace.id: (trace, trace.to_search()) for trace in self.traces}

    def answer(self, key: RolloutKey) -> Outcome:
        """Where the rollout leaves the completion, and what becomes of it; only what it generates costs tokens."""
        planted, trace = self._by_id[key.completion_id]
        seed = derive_seed(self.seed, key.completion_id, key.position, key.arm, key.stage, key.index)
        place = trace.leaves_at(key, uniform(seed, 0))
        cost = self.costs[key.completion_id]
        cost.rollouts += 1
        cost.tokens += len(planted.probabilities) - place
        succeeded = uniform(seed, 1) < planted.alternatives[place]
        return Outcome(Verdict.CORRECT if succeeded else Verdict.INCORRECT, place)

    def run(self, settings: SearchSettings) -> Search:
        """Searches all traces as one run."""
        search = Search([trace for _, trace in self._by_id.values()], settings)
        while asks := search.asks():
            search.tell({key: self.answer(key) for key in asks})
        return search


def search_planted(traces: Sequence[PlantedTrace], settings: SearchSettings, seed: int) -> list[Searched]:
    """One run over all traces, and what it reports of each."""
    simulation = Simulation(traces, seed)
    confirmed, reported = findings_of(simulation.run(settings), settings)
    return [
        Searched(
            effects=dict(enumerate(trace.effects.tolist())),
            reported=tuple(reported[trace.id]),
            rollouts=simulation.costs[trace.id].rollouts,
            tokens=simulation.costs[trace.id].tokens,
            confirmed=tuple(confirmed[trace.id]),
        )
        for trace in traces
    ]


def findings_of(
    search: Search, settings: SearchSettings
) -> tuple[dict[str, list[Finding]], dict[str, list[Finding]]]:
    """What was confirmed of each completion, and what is reported: Benjamini-Hochberg over all nominees of the run."""
    confirmed: dict[str, list[Finding]] = defaultdict(list)
    reported: dict[str, list[Finding]] = defaultdict(list)
    records = search.confirmations
    if records:
        rejected, _ = benjamini_hochberg([record.p_value for record in records], settings.fdr)
        for record, is_pivot in zip(records, rejected, strict=True):
            confirmed[record.completion_id].append(_finding(record))
            if is_pivot:
                reported[record.completion_id].append(_finding(record))
    return confirmed, reported


def _finding(record: ConfirmationRecord) -> Finding:
    return Finding(record.position, record.delta, (record.low, record.high))
