"""P(success) along the completions of a run, from everything that its ledger holds.

All rollouts of a completion take part, those of the confirmation too; so a curve shows what is known by now, while the
effect that is reported for a pivot rests on its confirmation alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from steering_pts.errors import LedgerError
from steering_pts.ledger import CompletionRecord, LedgerReader
from steering_pts.oracles.base import Verdict
from steering_pts.outcomes import also_leaves, known_outcomes
from steering_pts.pivots import SentenceUnit, TokenUnit, Unit, divergence, repeated_lengths
from steering_pts.search import Trace
from steering_pts.search.chain import Curve, StepPrior
from steering_pts.search.exploration import EXPLORE, Exploration, Explored
from steering_pts.sentences import Decode
from steering_pts.settings import SearchSettings

_LEARNING_PASSES = 4
_MOST_STEPS_LEARNED_FROM = 4_000  # 120 MB; the prior has two numbers


@dataclass(frozen=True, slots=True)
class Draw:
    """A rollout that left a completion at a position."""

    position: int
    verdict: Verdict


class RunCurves:
    """The value curves of a run's completions.

    Attributes:
        searched: The completions that were searched, by problem and index.
        settings: How.
    """

    def __init__(self, ledger: LedgerReader, decode: Decode) -> None:
        """Reads what is to be known of all completions.

        Args:
            ledger: The run.
            decode: Turns ids into text without special tokens, as oracles read it.

        Raises:
            LedgerError: A setting of the search is missing or can't be.
            SearchError: The same, said by the settings.
        """
        self._ledger = ledger
        self.settings = search_of(ledger)
        self._unit: Unit = SentenceUnit(decode) if self.settings.unit == "sentence" else TokenUnit()
        scores = {score.completion_id: score.probabilities for score in ledger.scores()}
        everything = ledger.completions()
        self._of_problem: dict[str, list[CompletionRecord]] = {}
        for completion in everything:
            self._of_problem.setdefault(completion.problem_id, []).append(completion)
        self.searched = tuple(c for c in everything if c.id in scores)
        repeats = repeated_lengths(self.searched)
        self._scores = scores
        self._repeats = repeats
        self._prior: StepPrior | None = None

    def curve(self, completion: CompletionRecord) -> Curve:
        """P(success) along one of the searched completions, with its 95 % interval."""
        if self._prior is None:
            self._prior = self._learned_prior()
        own = self._explored(completion)
        own.chain.set_prior(self._prior)
        return own.chain.curve()

    def _trace(self, completion: CompletionRecord) -> Trace:
        return Trace(
            completion_id=completion.id,
            probabilities=self._scores[completion.id],
            succeeded=completion.verdict is Verdict.CORRECT,
            spans=self._unit.spans(completion.ids),
            known=known_outcomes(completion, self._of_problem[completion.problem_id]),
            repeats=self._repeats[completion.id],
        )

    def _explored(self, completion: CompletionRecord) -> Explored:
        own = Explored(self._trace(completion), self.settings)
        self._tell(own, completion)
        return own

    def _tell(self, own: Explored, completion: CompletionRecord) -> None:
        for rollout in self._ledger.rollouts_for(completion.id):
            place = divergence(rollout, completion.ids)
            if place is not None:
                own.add(place, rollout.verdict)
        for draw in self._siblings_draws(completion):
            own.add(draw.position, draw.verdict)

    def _siblings_draws(self, completion: CompletionRecord) -> Iterable[Draw]:
        """Rollouts of other completions of the problem that are draws of this one too."""
        steps = self._trace(completion).steps(self.settings.tau)
        starts = {position: step for step in steps for position in range(step.start, step.end)}
        for sibling in self._of_problem[completion.problem_id]:
            if sibling.id == completion.id or sibling.id not in self._scores:
                continue
            for rollout in self._ledger.rollouts_for(sibling.id, EXPLORE):
                place = divergence(rollout, sibling.ids)
                if place is None:
                    continue
                ids = (*sibling.ids[: rollout.key.position], *rollout.ids)
                left_at = also_leaves(ids, place, sibling.ids, completion.ids)
                if left_at is None:
                    continue
                step = starts[left_at]
                # As in exploration: the place within a longer step has to be drawn from the step's beginning.
                if step.start > place or step.end == step.start + 1:
                    yield Draw(left_at, rollout.verdict)

    def _learned_prior(self) -> StepPrior:
        """The step prior that the run suggests, learned anew from its rollouts."""
        settings = self.settings
        if not settings.learn_prior:
            return StepPrior(settings.rho, settings.sd)
        chosen: list[CompletionRecord] = []
        steps = 0
        for completion in self.searched:
            steps += len(self._trace(completion).steps(settings.tau))
            if chosen and steps > _MOST_STEPS_LEARNED_FROM:
                break
            chosen.append(completion)
        exploration = Exploration([self._trace(completion) for completion in chosen], settings)
        for completion in chosen:
            self._tell(exploration.explored[completion.id], completion)
        prior = StepPrior(settings.rho, settings.sd)
        for _ in range(_LEARNING_PASSES):
            prior = exploration.learn_prior()
        return prior


def search_of(ledger: LedgerReader) -> SearchSettings:
    """The settings of a run's search.

    Raises:
        LedgerError: One of them is missing.
        SearchError: One of them can't be.
    """
    settings = ledger.settings()
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    if missing := [name for name in names if f"search.{name}" not in settings]:
        raise LedgerError(f"{ledger.path}: setting 'search.{missing[0]}' is missing")
    values: dict[str, object] = {name: settings[f"search.{name}"] for name in names}
    try:
        return SearchSettings(**values)  # type: ignore[arg-type]  # they check themselves
    except TypeError as error:
        raise LedgerError(f"{ledger.path}: its settings of the search can't be read: {error}") from error
