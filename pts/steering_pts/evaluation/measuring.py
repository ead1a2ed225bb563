"""Measures the arms of an evaluation on the same problems with the same seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from steering_pts.data import Problem
from steering_pts.evaluation.arms import Arm, ArmKind, every_step, steered
from steering_pts.evaluation.forcing import Forcing, KnownAlternatives, Start
from steering_pts.evaluation.journal import Journal
from steering_pts.evaluation.judging import judge
from steering_pts.evaluation.samples import Sample
from steering_pts.evaluation.sampling import ServedCompletions, Wanted
from steering_pts.evaluation.served import ServedVector
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.evaluation.shuffling import StepCounts, shuffled_steering
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.progress import RunProgress
from steering_pts.seeds import derive_seed
from steering_spec import Chat, PromptIds, PromptText, SamplingParams, SteeringSpec

Prompt = PromptText | PromptIds | Chat
ByProblem = tuple[tuple[Sample, ...], ...]
STEERED: Final = "steered"
UNSTEERED: Final = "unsteered"


@dataclass(frozen=True, slots=True)
class MeasuredArm:
    """What an arm came to.

    Attributes:
        arm: The arm.
        samples: Its completions by problem, in the order of the problems.
        verdicts: The verdict on each of them.
    """

    arm: Arm
    samples: ByProblem
    verdicts: tuple[tuple[Verdict, ...], ...]

    @property
    def solved(self) -> list[list[bool]]:
        """Whether each completion is correct; what is censored is not."""
        return [[verdict is Verdict.CORRECT for verdict in own] for own in self.verdicts]

    @property
    def success(self) -> float:
        """Share of the completions that are correct; what is censored is not."""
        solved = [one for own in self.solved for one in own]
        return sum(solved) / len(solved)

    def flat(self) -> list[Sample]:
        """All completions."""
        return [sample for own in self.samples for sample in own]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that was measured.

    Attributes:
        problems: The problems.
        arms: The arms, unsteered first and steered second.
        oracle_failures: Completions on which the oracle failed.
    """

    problems: tuple[Problem, ...]
    arms: tuple[MeasuredArm, ...]
    oracle_failures: int

    @property
    def unsteered(self) -> MeasuredArm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def steered(self) -> MeasuredArm:
        """All vectors together, by their triggers."""
        return self.arms[1]

    def of_kind(self, kind: ArmKind) -> list[MeasuredArm]:
        """The arms of a kind."""
        return [one for one in self.arms if one.arm.kind is kind]

    def named(self, name: str) -> MeasuredArm | None:
        """The arm of that name."""
        return next((one for one in self.arms if one.arm.name == name), None)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Measures arms.

    Attributes:
        completions: The server.
        problems: What is asked.
        prompts: The prompt of each problem, by its id.
        room: Tokens that each prompt leaves in the model's context, by the problem's id; none where it is not known.
        vectors: The vectors that are evaluated.
        randoms: Random versions of them, a list for each arm.
        known: Better tokens that a run knows of, of each vector.
        tokenizer: The model's, where it is known.
        settings: What is measured, and how.
        progress: Shows how far it is.
    """

    completions: ServedCompletions
    problems: Sequence[Problem]
    prompts: Mapping[str, Prompt]
    room: Mapping[str, int]
    vectors: Sequence[ServedVector]
    randoms: Sequence[Sequence[ServedVector]]
    known: Sequence[KnownAlternatives]
    tokenizer: Any
    settings: EvaluationSettings
    progress: RunProgress

    def complete(self) -> tuple[list[tuple[Arm, ByProblem]], list[str]]:
        """The completions of all arms, and a sentence for each that there can't be or that falls short.

        Raises:
            EndpointError: The server can't be reached, or refuses a request.
            EvaluationError: A completion can't be kept.
        """
        arms, sentences = self._arms()
        # All arms of a problem stand together, so that a server can share what they have in common.
        wanted = [self._wanted(problem, arm) for problem in self.problems for arm in arms]
        made = self.completions.complete(wanted, "evaluating", self.progress)
        by_arm = [tuple(made[place :: len(arms)]) for place in range(len(arms))]
        results = list(zip(arms, by_arm, strict=True))
        kinds = self.settings.kinds
        triggered = any(one.trigger is not None for one in self.vectors)
        if ArmKind.SHUFFLED_STEPS in kinds and triggered:
            shuffled, counts = self._shuffled(by_arm[0], by_arm[1])
            results.append(shuffled)
            sentences += counts.remarks()
        if ArmKind.FORCED_ALTERNATIVE in kinds and self.known:
            results.append(self._forced(by_arm[0]))
        return results, sentences

    def _arms(self) -> tuple[list[Arm], list[str]]:
        """The arms whose steering is the same for all completions, and what is left out."""
        wanted, vectors = self.settings.kinds, self.vectors
        specs: list[tuple[str, ArmKind, SteeringSpec | None]] = [
            (UNSTEERED, ArmKind.UNSTEERED, None),
            (STEERED, ArmKind.STEERED, steered(vectors)),
        ]
        if self.settings.each and len(vectors) > 1:
            count = Counter(one.name for one in vectors)
            specs += [
                (
                    f"{STEERED}: {one.name if count[one.name] == 1 else one.id}",
                    ArmKind.STEERED,
                    steered([one]),
                )
                for one in vectors
            ]
        if ArmKind.STRENGTH_0 in wanted:
            specs.append(("strength_0", ArmKind.STRENGTH_0, steered(vectors, 0.0)))
        if ArmKind.FLIPPED in wanted:
            specs.append(("flipped", ArmKind.FLIPPED, steered(vectors, -1.0)))
        sentences = []
        if any(one.trigger is not None for one in vectors):
            if ArmKind.EVERY_STEP in wanted:
                specs.append(("every_step", ArmKind.EVERY_STEP, every_step(vectors)))
        else:
            sentences.append(
                "every_step and shuffled_steps: the vectors act at every step, so the first is the arm steered and "
                "there are no other steps for the second"
            )
        if ArmKind.RANDOM in wanted:
            specs += [
                (f"random {number + 1}", ArmKind.RANDOM, steered(row))
                for number, row in enumerate(self.randoms)
            ]
        arms = [Arm(name, spec, kind, self.settings.samples_of(kind)) for name, kind, spec in specs]
        return arms, sentences

    def _wanted(self, problem: Problem, arm: Arm) -> Wanted:
        sampling = replace(self._sampling(problem), n=arm.samples)
        return Wanted(self.prompts[problem.id], sampling, arm.steering)

    def _sampling(self, problem: Problem) -> SamplingParams:
        seed = derive_seed(self.settings.seed, problem.id, "evaluation")
        return self.settings.sampler.params(seed, self.room.get(problem.id))

    def _shuffled(
        self, unsteered: ByProblem, on_pivots: ByProblem
    ) -> tuple[tuple[Arm, ByProblem], StepCounts]:
        kind = ArmKind.SHUFFLED_STEPS
        arm = Arm("shuffled_steps", None, kind, self.settings.samples_of(kind))
        rows: list[list[Sample]] = []
        wanted: list[Wanted] = []
        places: list[tuple[int, int]] = []
        counts = StepCounts(self.vectors)
        for number, problem in enumerate(self.problems):
            row = []
            for index in range(arm.samples):
                plain = unsteered[number][index]
                seed = derive_seed(self.settings.seed, problem.id, "shuffled steps", index)
                spec = shuffled_steering(self.vectors, plain, on_pivots[number][index], seed)
                row.append(plain)  # stays where nothing was steered
                counts.add_steered(on_pivots[number][index])
                if spec is not None:
                    places.append((number, index))
                    one = Wanted(self.prompts[problem.id], self._sampling(problem), spec)
                    wanted.append(one.single(index))
            rows.append(row)
        made = self.completions.complete(wanted, "evaluating, other steps", self.progress)
        for (number, index), one, (sample,) in zip(places, wanted, made, strict=True):
            rows[number][index] = sample
            counts.add_shuffled(sample, one.steering)
        return (arm, tuple(map(tuple, rows))), counts

    def _forced(self, unsteered: ByProblem) -> tuple[Arm, ByProblem]:
        kind = ArmKind.FORCED_ALTERNATIVE
        arm = Arm("forced_alternative", None, kind, self.settings.samples_of(kind))
        starts = [
            self._start(problem, index, own[index])
            for problem, own in zip(self.problems, unsteered, strict=True)
            for index in range(arm.samples)
        ]
        forcing = Forcing(
            self.known,
            self.settings.sampler.params(0),
            self.settings.seed,
            self.tokenizer,
            lambda wanted: self.completions.complete(wanted, "evaluating, forced", self.progress),
        )
        samples = forcing.force(starts)
        rows = [tuple(samples[place : place + arm.samples]) for place in range(0, len(samples), arm.samples)]
        return arm, tuple(rows)

    def _start(self, problem: Problem, index: int, sample: Sample) -> Start:
        prompt = self.prompts[problem.id]
        ids = prompt.ids if isinstance(prompt, PromptIds) else ()
        most = self._sampling(problem).max_tokens or len(sample.ids)
        return Start(problem.id, index, ids, sample, most)


def judged(
    completed: Sequence[tuple[Arm, ByProblem]],
    problems: Sequence[Problem],
    oracle: Oracle,
    journal: Journal,
    progress: RunProgress,
) -> Measurement:
    """The arms with the verdicts on their completions."""
    items = [
        (problem, sample)
        for _, by_problem in completed
        for problem, own in zip(problems, by_problem, strict=True)
        for sample in own
    ]
    verdicts, failures = judge(oracle, items, journal, progress)
    left = iter(verdicts)
    arms = tuple(
        MeasuredArm(arm, by_problem, tuple(tuple(next(left) for _ in own) for own in by_problem))
        for arm, by_problem in completed
    )
    return Measurement(tuple(problems), arms, failures)
