"""A discovery run: sample, filter, score, search, confirm, and write the pivots into the run's ledger.

Every rollout has a key and a seed derived from it, and outcomes that the ledger holds are not made again. So a run
that was interrupted at any moment is continued by the same command, and ends with the pivots of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering_engine.model import SteeredModel
from steering_pts.data import Problem
from steering_pts.keeping import sample_and_keep
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import CompletionRecord, ScoreRecord
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.outcomes import Outcomes, known_outcomes
from steering_pts.pivots import SentenceUnit, TokenUnit, Unit, repeated_lengths, select_pivots
from steering_pts.progress import RunProgress
from steering_pts.rollouts import Rollout, RolloutRequest, RolloutSource
from steering_pts.scoring import score_completions
from steering_pts.search import Search, Trace
from steering_pts.search.confirmation import CONFIRM
from steering_pts.search.exploration import EXPLORE
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.statistics import beta_posterior_between
from steering_pts.watching import until_for


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
        traces = self._score(kept, completions)
        outcomes = Outcomes(
            self,
            completions={completion.id: completion for completion in kept},
            traces={trace.completion_id: trace for trace in traces},
            problems={problem.id: problem for problem in problems},
        )
        search = Search(traces, self.search)
        for stage, name in ((EXPLORE, "exploring"), (CONFIRM, "confirming")):
            asks = search.asks()
            if search.stage != stage or not asks:
                continue
            self.ledger.add_nominees(search.nominees)
            known = self.ledger.summary().stages.get(stage, 0)
            with self.progress.phase(name, search.wanted, known, at_most=stage == EXPLORE) as advance:
                while asks and search.stage == stage:
                    search.tell(outcomes.of(asks, advance))
                    asks = search.asks()
        self.ledger.add_confirmations(search.confirmations)
        self.ledger.write_pivots(select_pivots(self.ledger, self.search.fdr, self._unit()))

    # --- completions ----------------------------------------------------------------------------------------------

    def _sample(self, problems: Sequence[Problem]) -> list[CompletionRecord]:
        """Base completions of every problem; their share of successes estimates P(success) at the prompt."""
        wanted = [(problem, index) for problem in problems for index in range(self.search.base_rollouts)]
        known = {(record.problem_id, record.index): record for record in self.ledger.completions()}
        missing = [(problem, index) for problem, index in wanted if (problem.id, index) not in known]
        seeds = [derive_seed(self.seed, problem.id, index, "base") for problem, index in missing]
        prompts = [self.prompts[problem.id] for problem, _ in missing]
        requests = [
            RolloutRequest(prompt, self.room(prompt), seed, until=until_for(self.oracle, problem, ""))
            for (problem, _), prompt, seed in zip(missing, prompts, seeds, strict=True)
        ]

        def keep(finished: Sequence[tuple[int, Rollout]]) -> None:
            judgements = judge_all(
                self.oracle, [(missing[at][0], self.text(r.ids), r.truncated) for at, r in finished]
            )
            records = [
                CompletionRecord(
                    id=f"{missing[at][0].id}-{missing[at][1]}",
                    problem_id=missing[at][0].id,
                    index=missing[at][1],
                    seed=seeds[at],
                    prompt_ids=prompts[at],
                    ids=rollout.ids,
                    verdict=judgement.verdict,
                    extracted=judgement.extracted,
                    finish_reason=rollout.finish_reason.value,
                    failed=judgement.failed,
                )
                for (at, rollout), judgement in zip(finished, judgements, strict=True)
            ]
            self.ledger.add_completions(records)
            known.update({(record.problem_id, record.index): record for record in records})

        with self.progress.phase("sampling completions", len(wanted), len(known)) as advance:
            sample_and_keep(self.source, requests, keep, advance)
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
                judged = {c.ids: c for c in reversed(own) if c.verdict is not Verdict.CENSORED}
                distinct = sorted(judged.values(), key=lambda c: c.index)
                kept += distinct[: self.search.completions_per_problem]
        return kept

    def _score(self, kept: Sequence[CompletionRecord], all_: Sequence[CompletionRecord]) -> list[Trace]:
        known = {score.completion_id: score for score in self.ledger.scores()}
        missing = [completion for completion in kept if completion.id not in known]
        pairs = [(completion.prompt_ids, completion.ids) for completion in missing]
        scores = [
            ScoreRecord(completion.id, probabilities)
            for completion, probabilities in zip(
                missing, score_completions(self.model.loaded, pairs, self.sampler), strict=True
            )
        ]
        self.ledger.add_scores(scores)
        known.update({score.completion_id: score for score in scores})
        of_problem: dict[str, list[CompletionRecord]] = {}
        for completion in all_:
            of_problem.setdefault(completion.problem_id, []).append(completion)
        repeats = repeated_lengths(kept)
        unit = self._unit()
        return [
            Trace(
                completion_id=completion.id,
                probabilities=known[completion.id].probabilities,
                succeeded=completion.verdict is Verdict.CORRECT,
                spans=unit.spans(completion.ids),
                known=known_outcomes(completion, of_problem[completion.problem_id]),
                repeats=repeats[completion.id],
            )
            for completion in kept
        ]

    def _unit(self) -> Unit:
        return SentenceUnit(self.text) if self.search.unit == "sentence" else TokenUnit()

    # --- text -----------------------------------------------------------------------------------------------------

    def room(self, prefix: Sequence[int]) -> int:
        """Most tokens that may follow a prefix."""
        return min(self.sampler.max_tokens, self.model.info.facts.max_context_tokens - len(prefix))

    def text(self, ids: Sequence[int]) -> str:
        """Ids as the oracle reads them: without special tokens."""
        text: str = self.model.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
