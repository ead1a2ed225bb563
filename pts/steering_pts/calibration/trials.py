"""Trials: what an arm (one way of steering) does on draws (a problem and a sample), measured once and logged.

All arms share the seed of a draw, so two of them differ only where steering made a difference. A completion that no
rule would act in is that of the unsteered arm, and is not made again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from steering_engine.model import SteeredModel
from steering_engine.steering.contexts import ContextIndex
from steering_engine.vectors.schema import SteeringVector
from steering_pts.calibration.divergence import Observer, TracedCompletion, kl_per_token
from steering_pts.calibration.firing import Agreement, Firing
from steering_pts.calibration.log import CalibrationLog, Draw, Outcome
from steering_pts.calibration.options import TRIGGERS, TriggerKindName
from steering_pts.calibration.settings import Setting, TriggerChoice
from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all
from steering_pts.progress import Advance, RunProgress
from steering_pts.rollouts import EngineRollouts
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_spec import Completion, FinishReason, GenerationSpec, PromptIds, SteeringSpec

_WAVE = 1024  # completions
"""After so many everything is on the disk: what a kill may cost, and enough to keep the batch full."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured on.

    Attributes:
        model: The model that serves the completions; the candidates are loaded into it.
        source: Runs them.
        oracle: Judges them.
        problems: By id; none of them is one that the vectors were made from.
        prompts: Their prompt ids, from `steering_pts.prompts.encode_prompts`.
        sampler: How completions are drawn.
        seed: Seed of the run.
        progress: Shows how far it is.
    """

    model: SteeredModel
    source: EngineRollouts
    oracle: Oracle
    problems: Mapping[str, Problem]
    prompts: Mapping[str, tuple[int, ...]]
    sampler: SamplerSettings
    seed: int
    progress: RunProgress


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of steering: none, one setting, or several together."""

    settings: tuple[Setting, ...] = ()

    @property
    def key(self) -> str:
        """What the arm is called in the log: what acts, by the content of its files."""
        return " + ".join(
            f"{one.vector_id}/{one.block} x{one.multiple!r} {one.trigger}" for one in self.settings
        )

    @property
    def steering(self) -> SteeringSpec | None:
        """The arm as steering of a request."""
        return SteeringSpec(tuple(one.rule for one in self.settings)) if self.settings else None

    @property
    def kind(self) -> TriggerKindName | None:
        """The kind of trigger of a single setting; None for no or several settings."""
        return self.settings[0].trigger.kind if len(self.settings) == 1 else None

    @property
    def acts_everywhere(self) -> bool:
        """Whether no step is left that isn't steered; then the divergence counts at all of them."""
        return any(one.trigger.kind == "always" for one in self.settings)


UNSTEERED = Arm()


class Trials:
    """Measures arms on draws, and remembers."""

    def __init__(
        self,
        bench: Bench,
        vectors: Mapping[str, SteeringVector],
        log: CalibrationLog,
        settings: Sequence[Setting] = (),
    ) -> None:
        """Makes trials.

        Args:
            bench: What is measured on.
            vectors: The loaded candidates by id.
            log: Where outcomes are kept.
            settings: Settings that may be measured, by themselves or together; those that differ in their trigger
                alone take completions over from each other.
        """
        self._bench = bench
        self._vectors = vectors
        self._log = log
        contexts = {name: ContextIndex(vector.contexts) for name, vector in vectors.items()}
        self._families: dict[tuple[str, int, float], list[Setting]] = defaultdict(list)
        self._firings: dict[tuple[str, TriggerChoice], Firing] = {}
        for one in settings:
            self._families[one.vector_id, one.block, one.multiple].append(one)
            firing = Firing(one.trigger, vectors[one.vector_id], contexts[one.vector_id])
            self._firings[one.vector_id, one.trigger] = firing
        self._fires: dict[tuple[str, TriggerChoice], dict[Draw, bool]] = defaultdict(dict)
        self._used: set[tuple[str, Draw]] = set()

    @property
    def generated(self) -> int:
        """Completions that were made for these trials, in this process or before."""
        return sum(self._log.was_made(arm, draw) for arm, draw in self._used)

    def measure(self, jobs: Sequence[tuple[Arm, Sequence[Draw]]], phase: str) -> list[list[Outcome]]:
        """The outcomes of each arm on its draws; what the log does not hold is measured."""
        unsteered = list(dict.fromkeys(draw for _, draws in jobs for draw in draws))
        self._complete([(UNSTEERED, unsteered)], f"{phase}: unsteered")
        self._look_at_unsteered(unsteered)
        acting = [(arm, [draw for draw in draws if self._may_act(arm, draw)]) for arm, draws in jobs]
        # One kind of trigger after the other: the later ones find most of their completions made.
        for kind in (*TRIGGERS, None):
            self._complete([job for job in acting if job[0].kind == kind], f"{phase}: {kind or 'together'}")
        self._used.update(
            (arm.key, draw) for arm, draws in [(UNSTEERED, unsteered), *acting] for draw in draws
        )
        base = self._log.outcomes(UNSTEERED.key)
        return [
            [self._log.outcomes(arm.key).get(draw) or base[draw] for draw in draws] for arm, draws in jobs
        ]

    def may_act(self, setting: Setting, draw: Draw) -> bool:
        """Whether a setting could act in a draw of which the unsteered completion is known.

        Up to its first act a steered completion is the unsteered one, so where this is False nothing ever acts.
        """
        return self._fires[setting.vector_id, setting.trigger].get(draw, True)

    def _may_act(self, arm: Arm, draw: Draw) -> bool:
        return any(self.may_act(one, draw) for one in arm.settings)

    def _look_at_unsteered(self, draws: Sequence[Draw]) -> None:
        """Finds out which triggers fire at all in the unsteered completions of draws."""
        open_ones = {
            key: firing
            for key, firing in self._firings.items()
            if any(draw not in self._fires[key] for draw in draws)
        }
        fresh = [draw for draw in draws if any(draw not in self._fires[key] for key in open_ones)]
        texts = [(self._bench.prompts[draw.problem_id], self._log.unsteered_ids[draw]) for draw in fresh]
        reading = {key: firing for key, firing in open_ones.items() if firing.block is not None}
        for key in open_ones.keys() - reading.keys():
            for draw, text in zip(fresh, texts, strict=True):
                self._fires[key][draw] = any(open_ones[key].on_ids(*text))

        def see(number: int, block: int, states: torch.Tensor) -> None:
            for key, firing in reading.items():
                if firing.block == block:
                    fired = firing.on_states(states)
                    self._fires[key][fresh[number]] = fired is None or any(fired)

        if reading:
            # A completion that broke off without a token stays out, and counts as one in which anything may fire.
            traced = [TracedCompletion(prompt, ids, SteeringSpec(()), ()) for prompt, ids in texts if ids]
            numbers = [number for number, (_, ids) in enumerate(texts) if ids]
            blocks = tuple(sorted({b for firing in reading.values() if (b := firing.block) is not None}))
            observer = Observer(blocks, lambda row, block, states: see(numbers[row], block, states))
            kl_per_token(self._bench.model.loaded, traced, self._vectors, observer=observer)

    def _complete(self, jobs: Sequence[tuple[Arm, Sequence[Draw]]], phase: str) -> None:
        """Measures what is missing, in waves; an arm's draws of one call stay together, and so do their batches."""
        missing = []
        for arm, draws in jobs:
            known = self._log.outcomes(arm.key)
            if wanted := [draw for draw in draws if draw not in known]:
                missing.append((arm, wanted))
        if not missing:
            return
        total = sum(len(draws) for _, draws in missing)
        with self._bench.progress.phase(phase, total) as advance:
            wave: list[tuple[Arm, list[Draw]]] = []
            for job in missing:
                wave.append(job)
                if sum(len(draws) for _, draws in wave) >= _WAVE:
                    self._run(wave, advance)
                    wave = []
            self._run(wave, advance)

    def _run(self, wave: Sequence[tuple[Arm, list[Draw]]], advance: Advance) -> None:
        specs = [self._spec(arm, draw) for arm, draws in wave for draw in draws]
        completions = self._bench.source.complete(specs, advance)
        solved = iter(self._solved([draw for _, draws in wave for draw in draws], completions))
        left = iter(completions)
        for arm, draws in wave:
            own = [next(left) for _ in draws]
            outcomes, also = self._outcomes(arm, draws, own, [next(solved) for _ in draws])
            ids = None if arm.settings else [one.ids if one else () for one in own]
            self._log.add(arm.key, draws, outcomes, ids, also)
        self._log.flush()

    def _spec(self, arm: Arm, draw: Draw) -> GenerationSpec:
        prompt_ids = self._bench.prompts[draw.problem_id]
        # As in discovery, a completion gets what room the context leaves.
        room = self._bench.model.info.facts.max_context_tokens - len(prompt_ids)
        seed = derive_seed(self._bench.seed, draw.problem_id, "calibration", draw.sample)
        sampling = self._bench.sampler.params(seed, room)
        return GenerationSpec(PromptIds(prompt_ids), sampling, arm.steering, steering_trace=True)

    def _solved(self, draws: Sequence[Draw], completions: Sequence[Completion | None]) -> list[bool]:
        judgements = iter(
            judge_all(
                self._bench.oracle,
                [
                    (
                        self._bench.problems[draw.problem_id],
                        one.text,
                        one.finish_reason is FinishReason.LENGTH,
                    )
                    for draw, one in zip(draws, completions, strict=True)
                    if one is not None
                ],
            )
        )
        # A steering so strong that it breaks the logits solves nothing, and loses.
        return [one is not None and next(judgements).verdict is Verdict.CORRECT for one in completions]

    def _outcomes(
        self,
        arm: Arm,
        draws: Sequence[Draw],
        completions: Sequence[Completion | None],
        solved: Sequence[bool],
    ) -> tuple[list[Outcome], dict[str, list[int]]]:
        """The outcomes of an arm, and by other arms the places where their completion is the same."""
        if not arm.settings:
            return [
                Outcome(right, 0.0, len(one.tokens) if one else 0)
                for right, one in zip(solved, completions, strict=True)
            ], {}
        places = [place for place, one in enumerate(completions) if one is not None]
        traced = [
            TracedCompletion(self._bench.prompts[draw.problem_id], one.ids, one.applied_steering, one.acts)
            for draw, one in zip(draws, completions, strict=True)
            if one is not None and one.applied_steering is not None
        ]
        agreement = Agreement(self._relatives(arm), traced, places)
        divergences = iter(
            kl_per_token(self._bench.model.loaded, traced, self._vectors, observer=agreement.observer)
        )
        outcomes = []
        for one, right in zip(completions, solved, strict=True):
            if one is None:
                outcomes.append(Outcome(False, float("inf"), 1, 0))
                continue
            divergence = next(divergences)
            kl, steps = divergence.counted(every_step=arm.acts_everywhere)
            outcomes.append(Outcome(right, kl, steps, sum(divergence.steered)))
        return outcomes, agreement.places()

    def _relatives(self, arm: Arm) -> dict[str, Firing]:
        """The arms that differ from a single setting in its trigger alone, by their keys."""
        if len(arm.settings) != 1 or arm.acts_everywhere:
            return {}
        (own,) = arm.settings
        return {
            Arm((one,)).key: self._firings[one.vector_id, one.trigger]
            for one in self._families[own.vector_id, own.block, own.multiple]
            if one.trigger != own.trigger and one.trigger.kind != "always"
        }
