"""The search on the bundled model, held against the dense reference of the same completions."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console

from steering_engine.alias import resolve_model
from steering_engine.engine.sampling import uniform
from steering_engine.model import SteeredModel
from steering_pts.ledger.records import RolloutKey
from steering_pts.oracles.registry import make_oracle
from steering_pts.rollouts import EngineRollouts
from steering_pts.search import Outcome, Search
from steering_pts.seeds import derive_seed
from steering_pts.settings import SearchSettings
from tests.bench.discovery.bench import rows_table
from tests.bench.discovery.bundled_rollouts import BundledRollouts, Start
from tests.bench.discovery.findings import Searched
from tests.bench.discovery.measure import measure
from tests.bench.discovery.reference_file import (
    Reference,
    ReferenceCompletion,
    bundled_digest,
    load_reference,
)
from tests.bench.discovery.simulation import Cost, findings_of, search_planted
from tests.bench.discovery.traces import draw_traces, scenario_like

SEED: Final = 20_262
SIMULATED: Final = 10
"""Planted traces drawn for each completion, to compare the cost."""


def bench_bundled(console: Console) -> dict[str, object]:
    """Searches the reference's completions as one run through the engine.

    Returns:
        What `measure` says, pivots being those of the reference; by planted kind, how many there are and how many are
        `found`; `simulated_kilotokens` of planted traces with the same lengths, candidates and numbers of pivots; and
        the `ratio` of tokens to those.

    Raises:
        ValueError: The reference was made with another model.
    """
    reference = load_reference()
    if reference.model_digest != bundled_digest():
        raise ValueError(
            "the reference is of another model than the bundled one; "
            "make it again with `python -m tests.bench.discovery.reference`"
        )
    settings = SearchSettings(tau=reference.tau)
    started = time.perf_counter()
    searched = search_bundled(reference, settings)
    row = measure(searched, settings.tau, settings.delta0, time.perf_counter() - started)
    simulated = _simulated_kilotokens(reference.completions, settings)
    kinds = _kinds(reference.completions, searched, settings.tau)
    console.print(rows_table(f"bundled model: {len(searched)} completions", {"pivotal": row}))
    found = ", ".join(f"{kind} {own['found']} of {own['pivots']}" for kind, own in kinds.items())
    ratio = float(row["kilotokens"] or 0) / simulated
    console.print(f"found: {found}; {ratio:.2f} of the tokens of planted traces ({simulated:.2f} thousand)")
    return {**row, "kinds": kinds, "simulated_kilotokens": simulated, "ratio": ratio}


def search_bundled(reference: Reference, settings: SearchSettings) -> list[Searched]:
    """One run over all completions; what it reports of each, beside the reference's effects."""
    completions = {completion.id: completion for completion in reference.completions}
    costs: dict[str, Cost] = defaultdict(Cost)
    search = Search([completion.to_search() for completion in reference.completions], settings)
    model = SteeredModel.load(resolve_model("demo"), device="cpu")
    oracle = make_oracle("math")
    try:
        with EngineRollouts(model, reference.sampler) as source:
            rollouts = BundledRollouts(model, source, oracle, reference.sampler.max_tokens)
            while asks := search.asks():
                search.tell(_outcomes(rollouts, completions, asks, costs))
    finally:
        oracle.close()
    confirmed, reported = findings_of(search, settings)
    return [
        Searched(
            effects={candidate.position: candidate.delta for candidate in completion.candidates},
            reported=tuple(reported[completion.id]),
            rollouts=costs[completion.id].rollouts,
            tokens=costs[completion.id].tokens,
            confirmed=tuple(confirmed[completion.id]),
        )
        for completion in reference.completions
    ]


def _outcomes(
    rollouts: BundledRollouts,
    completions: Mapping[str, ReferenceCompletion],
    asks: Sequence[RolloutKey],
    costs: dict[str, Cost],
) -> dict[RolloutKey, Outcome]:
    traces = {name: completion.to_search() for name, completion in completions.items()}
    starts = []
    for key in asks:
        seed = derive_seed(SEED, key.completion_id, key.position, key.arm, key.stage, key.index)
        place = traces[key.completion_id].leaves_at(key, uniform(derive_seed(seed, "place"), 0))
        starts.append(Start(completions[key.completion_id], place, leaves=True, seed=seed))
    outcomes = {}
    for key, start, (verdict, tokens) in zip(asks, starts, rollouts.judged(starts), strict=True):
        costs[key.completion_id].rollouts += 1
        costs[key.completion_id].tokens += tokens
        outcomes[key] = Outcome(verdict, start.given)
    return outcomes


def _simulated_kilotokens(completions: Sequence[ReferenceCompletion], settings: SearchSettings) -> float:
    """Mean cost of planted traces that are like the completions, searched as one run."""
    planted = []
    for completion in completions:
        places = [candidate.position for candidate in completion.candidates]
        pivots = sum(abs(candidate.delta) >= settings.tau for candidate in completion.candidates)
        scenario = scenario_like(places, len(completion.ids), max(pivots, 1))
        planted += draw_traces(scenario, SIMULATED, derive_seed(SEED, completion.id), prefix=completion.id)
    searched = search_planted(planted, settings, SEED)
    return sum(own.tokens or 0 for own in searched) / len(searched) / 1000


def _kinds(
    completions: Sequence[ReferenceCompletion], searched: Sequence[Searched], tau: float
) -> dict[str, dict[str, int]]:
    """How many pivots the reference has of each planted kind, and how many of them were reported."""
    pivots: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for completion, own in zip(completions, searched, strict=True):
        reported = {finding.position for finding in own.reported}
        for candidate in completion.candidates:
            if abs(candidate.delta) >= tau:
                pivots[candidate.kind] += 1
                found[candidate.kind] += candidate.position in reported
    return {kind: {"pivots": count, "found": found[kind]} for kind, count in sorted(pivots.items())}
