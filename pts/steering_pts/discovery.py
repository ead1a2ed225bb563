"""A discovery run: sample, filter, score, search, confirm, and write the pivots into the run's ledger.

Every rollout has a key and a seed derived from it, and outcomes that the ledger holds are not made again. So a run
that was interrupted at any moment is continued by the same command, and ends with the pivots of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering_engine.model import SteeredModel
from steering_pts.data import Problem
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import CompletionRecord, RolloutKey, RolloutRecord, ScoreRecord
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.pivots import select_pivots
from steering_pts.progress import Advance, RunProgress
from steering_pts.rollouts import Rollout, RolloutRequest, RolloutSource
from steering_pts.scoring import score_completions
from steering_pts.search import CompletionSearch, Outcome, Trace
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.statistics import beta_posterior_between

_SAVE_EVERY = 1024
"""Rollouts sampled between two commits: what a kill can cost."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """One run over a set of problems.

    Attributes:
        model: The model whose pivots are looked for.
        prompts: Prompt ids by problem, from `steering_pts.prompts.encode_prompts`.
        source: Samples its completions.
        oracle: Says which are right.
        ledger: Where everything is kept.
        sampler: How completions are drawn.
        search: How pivots are searched for and confirmed.
        seed: Seed of the run.
        progress: Shows how far it is.
    """

    model: SteeredModel
    prompts: Mapping[str, tuple[int, ...]]
    source: RolloutSource
    oracle: Oracle
    ledger: Ledger
    sampler: SamplerSettings
    search: SearchSettings
    seed: int
    progress: RunProgress

    def run(self, problems: Sequence[Problem]) -> None:
        """Runs to the end, or continues a run that was interrupted; the pivots are in the ledger then."""
        self.ledger.add_problems(list(problems))
        completions = self._sample(problems)
        kept = self._undecided(completions)
        traces = self._score(kept)
        searches = [CompletionSearch(trace, self.search) for trace in traces]
        by_id = {completion.id: completion for completion in kept}
        problem_of = {problem.id: problem for problem in problems}
        while rounds := [(search, asks) for search in searches if (asks := search.asks())]:
            outcomes = self._roll([key for _, asks in rounds for key in asks], by_id, problem_of)
            for search, asks in rounds:
                search.tell({key: outcomes[key] for key in asks})
        for search in searches:
            self.ledger.add_nominees(search.nominees)
            self.ledger.add_confirmations(search.confirmations)
        self.ledger.write_pivots(select_pivots(self.ledger, self.search.fdr))

    # --- completions ----------------------------------------------------------------------------------------------

    def _sample(self, problems: Sequence[Problem]) -> list[CompletionRecord]:
        """Base completions of every problem; their share of successes estimates P(success) at the prompt."""
        wanted = [(problem, index) for problem in problems for index in range(self.search.base_rollouts)]
        known = {(record.problem_id, record.index): record for record in self.ledger.completions()}
        missing = [(problem, index) for problem, index in wanted if (problem.id, index) not in known]
        with self.progress.phase("sampling completions", len(missing)) as advance:
            for start in range(0, len(missing), _SAVE_EVERY):
                batch = missing[start : start + _SAVE_EVERY]
                prompts = [self.prompts[problem.id] for problem, _ in batch]
                seeds = [derive_seed(self.seed, problem.id, index, "base") for problem, index in batch]
                requests = [
                    RolloutRequest(prompt, self._room(prompt), seed)
                    for prompt, seed in zip(prompts, seeds, strict=True)
                ]
                rollouts = self.source.sample(requests, advance)
                judgements = judge_all(
                    self.oracle,
                    [
                        (problem, self._text(r.ids), r.truncated)
                        for (problem, _), r in zip(batch, rollouts, strict=True)
                    ],
                )
                records = [
                    CompletionRecord(
                        id=f"{problem.id}-{index}",
                        problem_id=problem.id,
                        index=index,
                        seed=seed,
                        prompt_ids=prompt,
                        ids=rollout.ids,
                        verdict=judgement.verdict,
                        extracted=judgement.extracted,
                        finish_reason=rollout.finish_reason.value,
                    )
                    for (problem, index), prompt, seed, rollout, judgement in zip(
                        batch, prompts, seeds, rollouts, judgements, strict=True
                    )
                ]
                self.ledger.add_completions(records)
                known.update({(record.problem_id, record.index): record for record in records})
        return [known[problem.id, index] for problem, index in wanted]

    def _undecided(self, completions: Sequence[CompletionRecord]) -> list[CompletionRecord]:
        """The completions to search: of problems that are neither hopeless nor safe, and with a verdict."""
        by_problem: dict[str, list[CompletionRecord]] = {}
        for completion in completions:
            by_problem.setdefault(completion.problem_id, []).append(completion)
        kept = []
        for own in by_problem.values():
            successes = sum(c.verdict is Verdict.CORRECT for c in own)
            failures = sum(c.verdict is Verdict.INCORRECT for c in own)
            if beta_posterior_between(successes, failures, self.search.low, self.search.high) >= 0.5:
                judged = [c for c in own if c.verdict is not Verdict.CENSORED]
                kept += judged[: self.search.completions_per_problem]
        return kept

    def _score(self, completions: Sequence[CompletionRecord]) -> list[Trace]:
        known = {score.completion_id: score for score in self.ledger.scores()}
        missing = [completion for completion in completions if completion.id not in known]
        pairs = [(completion.prompt_ids, completion.ids) for completion in missing]
        scores = [
            ScoreRecord(completion.id, probabilities)
            for completion, probabilities in zip(
                missing, score_completions(self.model.loaded, pairs, self.sampler), strict=True
            )
        ]
        self.ledger.add_scores(scores)
        known.update({score.completion_id: score for score in scores})
        return [Trace(completion.id, known[completion.id].probabilities) for completion in completions]

    # --- rollouts -------------------------------------------------------------------------------------------------

    def _roll(
        self,
        keys: Sequence[RolloutKey],
        completions: dict[str, CompletionRecord],
        problems: dict[str, Problem],
    ) -> dict[RolloutKey, Outcome]:
        records = self.ledger.find_rollouts(keys)
        missing = [key for key in keys if key not in records]
        name = "confirming" if keys[0].stage == "confirm" else "exploring"
        with self.progress.phase(name, len(missing)) as advance:
            for start in range(0, len(missing), _SAVE_EVERY):
                made = self._make(missing[start : start + _SAVE_EVERY], completions, problems, advance)
                self.ledger.add_rollouts(made)
                records.update({record.key: record for record in made})
        return {
            key: Outcome(records[key].verdict, divergence(records[key], completions[key.completion_id].ids))
            for key in keys
        }

    def _make(
        self,
        keys: Sequence[RolloutKey],
        completions: dict[str, CompletionRecord],
        problems: dict[str, Problem],
        advance: Advance,
    ) -> list[RolloutRecord]:
        requests, rolled = [], []
        for key in keys:
            completion = completions[key.completion_id]
            on_path = key.arm == "on_path"
            given = completion.ids[: key.position + 1] if on_path else completion.ids[: key.position]
            prefix = (*completion.prompt_ids, *given)
            if len(given) == len(completion.ids):
                continue  # the whole completion is given: its verdict is the outcome
            rolled.append(key)
            requests.append(
                RolloutRequest(
                    prefix_ids=prefix,
                    max_tokens=min(self._room(prefix), self.sampler.max_tokens - len(given)),
                    seed=self._seed(key),
                    banned_first_ids=() if on_path else (completion.ids[key.position],),
                )
            )
        rollouts = dict(zip(rolled, self.source.sample(requests, advance), strict=True))
        whole = [self._continuation(key, completions[key.completion_id], rollouts.get(key)) for key in keys]
        judgements = judge_all(
            self.oracle,
            [
                (
                    problems[completions[key.completion_id].problem_id],
                    self._text((*completions[key.completion_id].ids[: key.position], *ids)),
                    key in rollouts and rollouts[key].truncated,
                )
                for key, ids in zip(keys, whole, strict=True)
            ],
        )
        return [
            RolloutRecord(
                key=key,
                seed=self._seed(key),
                ids=ids,
                verdict=judgement.verdict,
                extracted=judgement.extracted,
                tokens=len(rollouts[key].ids) if key in rollouts else 0,
            )
            for key, ids, judgement in zip(keys, whole, judgements, strict=True)
        ]

    def _continuation(
        self, key: RolloutKey, completion: CompletionRecord, rollout: Rollout | None
    ) -> tuple[int, ...]:
        """The ids from the key's position on."""
        given = (completion.ids[key.position],) if key.arm == "on_path" else ()
        return given + (() if rollout is None else rollout.ids)

    def _seed(self, key: RolloutKey) -> int:
        return derive_seed(self.seed, key.completion_id, key.position, key.arm, key.stage, key.index)

    # --- text -----------------------------------------------------------------------------------------------------

    def _room(self, prefix: Sequence[int]) -> int:
        return min(self.sampler.max_tokens, self.model.info.facts.max_context_tokens - len(prefix))

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.model.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def divergence(record: RolloutRecord, completion_ids: Sequence[int]) -> int | None:
    """Position of the first token of a rollout that is not the completion's, None when it follows it to the end."""
    path = completion_ids[record.key.position :]
    for offset, (ours, theirs) in enumerate(zip(record.ids, path, strict=False)):
        if ours != theirs:
            return record.key.position + offset
    return None
