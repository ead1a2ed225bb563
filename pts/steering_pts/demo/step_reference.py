"""The dense reference of pivotal steps on the bundled model: completions with every step rolled out, from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from steering_pts.demo import model_path
from steering_pts.settings import SamplerSettings
from steering_pts.statistics import Estimate
from steering_pts.vectors.variance import decision_variance, variance_draws

PATH: Final = Path(__file__).parent / "data" / "steps.json"

_DRAWS: Final = 4_000
_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class ReferenceBranch:
    """A token that can come at a step, or all others together (no id), and what became of rollouts from there."""

    id: int | None
    probability: float
    correct: int = 0
    incorrect: int = 0

    def with_more(self, correct: int, incorrect: int) -> ReferenceBranch:
        """The same after more rollouts."""
        return replace(self, correct=self.correct + correct, incorrect=self.incorrect + incorrect)


@dataclass(frozen=True)
class ReferenceStep:
    """A step that its probabilities alone don't certify as not pivotal.

    Attributes:
        position: Index of the token that it predicts.
        branches: What can come there.
    """

    position: int
    branches: tuple[ReferenceBranch, ...]

    @cached_property
    def variance(self) -> Estimate:
        """The decision variance with its 95 % credible interval."""
        probabilities = [branch.probability for branch in self.branches]
        counts = [(branch.correct, branch.incorrect) for branch in self.branches]
        rest = max(0.0, 1 - sum(probabilities))
        draws = variance_draws(probabilities, counts, rest, np.random.default_rng(0), _DRAWS)
        low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        pi = np.array(probabilities) / sum(probabilities)
        rates = np.array([[(s + 0.5) / (s + f + 1) for s, f in counts]])
        return Estimate(float(decision_variance(pi, rates)[0]), float(low), float(high))

    def pivotal(self, tau: float) -> bool | None:
        """Whether the variance is at least tau^2; None where its interval holds both answers."""
        if self.variance.low >= tau**2:
            return True
        return False if self.variance.high < tau**2 else None


@dataclass(frozen=True, slots=True)
class ReferenceCompletion:
    """A completion, and those of its steps that were rolled out; all others are certified not to be pivotal."""

    problem_id: str
    question: str
    form: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    steps: tuple[ReferenceStep, ...]

    def labels(self, tau: float) -> list[bool | None]:
        """For each step whether it is pivotal; None where that is not certain."""
        open_ = {step.position: step.pivotal(tau) for step in self.steps}
        return [open_.get(position, False) for position in range(len(self.ids))]


@dataclass(frozen=True, slots=True)
class StepReference:
    """The file's content.

    Attributes:
        model_digest: SHA-256 of the weights that it was made with.
        sampler: How completions and rollouts were drawn.
        tau: A step is pivotal from a decision variance of tau^2 on.
        least: Tokens less likely than this were rolled out together.
        rollouts: Rollouts of every branch.
        more_rollouts: Those that were added where the first left it open.
        seed: Seed of everything.
        completions: One of each problem.
    """

    model_digest: str
    sampler: SamplerSettings
    tau: float
    least: float
    rollouts: int
    more_rollouts: int
    seed: int
    completions: tuple[ReferenceCompletion, ...]


def bundled_digest() -> str:
    """SHA-256 of the bundled model's weights."""
    return hashlib.sha256((model_path() / "model.safetensors").read_bytes()).hexdigest()


def save_reference(reference: StepReference, path: Path = PATH) -> None:
    """Writes one completion a line, in one step."""
    head = {
        field.name: getattr(reference, field.name)
        for field in dataclasses.fields(reference)
        if field.name not in {"sampler", "completions"}
    }
    head["sampler"] = dataclasses.asdict(reference.sampler)
    lines = [json.dumps(_row(completion), separators=(",", ":")) for completion in reference.completions]
    text = json.dumps(head)[:-1] + ', "completions": [\n' + ",\n".join(lines) + "\n]}\n"
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def load_reference(path: Path = PATH) -> StepReference:
    """Reads what `save_reference` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["sampler"] = SamplerSettings(**content["sampler"])
    content["completions"] = tuple(_completion(row) for row in content["completions"])
    return StepReference(**content)


def _row(completion: ReferenceCompletion) -> dict[str, Any]:
    row = {field.name: getattr(completion, field.name) for field in dataclasses.fields(completion)}
    row["steps"] = [
        {
            "position": step.position,
            "branches": [[b.id, round(b.probability, 6), b.correct, b.incorrect] for b in step.branches],
        }
        for step in completion.steps
    ]
    return row


def _completion(row: dict[str, Any]) -> ReferenceCompletion:
    steps = tuple(
        ReferenceStep(step["position"], tuple(ReferenceBranch(*branch) for branch in step["branches"]))
        for step in row["steps"]
    )
    return ReferenceCompletion(
        **{**row, "prompt_ids": tuple(row["prompt_ids"]), "ids": tuple(row["ids"]), "steps": steps}
    )
