"""The dense reference: completions of the bundled model with the effects of all their candidates, from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steering_pts.demo import model_path
from steering_pts.search import Trace
from steering_pts.settings import SamplerSettings

PATH: Final = Path(__file__).parents[1] / "data" / "reference.json"

Counts = tuple[int, int, int]
"""Rollouts that succeeded, that failed, and that were censored."""


@dataclass(frozen=True, slots=True)
class ReferenceCandidate:
    """A token that can be pivotal.

    Attributes:
        position: Its index among the generated tokens.
        token: Its text.
        kind: The planted decision that it takes, `other` for none.
        probability: Pi under the sampler.
        alternative: Rollouts with another token in its place.
        after: Rollouts from the prefix that ends with it; None for the last token, where the verdict is known.
        delta: Its effect on P(success).
        standard_error: Of `delta`.
    """

    position: int
    token: str
    kind: str
    probability: float
    alternative: Counts
    after: Counts | None
    delta: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class ReferenceCompletion:
    """A completion, and its candidates in order; all other tokens are certified not to be pivotal."""

    id: str
    problem_id: str
    question: str
    answer: str
    form: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    succeeded: bool
    probabilities: tuple[float, ...]
    candidates: tuple[ReferenceCandidate, ...]

    def to_search(self) -> Trace:
        """What a search may know of it."""
        return Trace(self.id, self.probabilities, succeeded=self.succeeded)


@dataclass(frozen=True, slots=True)
class Reference:
    """The file's content; `model_digest` is the SHA-256 of the weights that it was made with."""

    model_digest: str
    sampler: SamplerSettings
    tau: float
    rollouts: int
    seed: int
    completions: tuple[ReferenceCompletion, ...]


def bundled_digest() -> str:
    """SHA-256 of the bundled model's weights."""
    return hashlib.sha256((model_path() / "model.safetensors").read_bytes()).hexdigest()


def effect(
    probability: float, succeeded: bool, alternative: Counts, after: Counts | None
) -> tuple[float, float]:
    """Delta = (1 - pi)(V - A) with its standard error; a side that always came out the same keeps some doubt."""
    value, variance = (float(succeeded), 0.0) if after is None else _rate(after)
    other, other_variance = _rate(alternative)
    return (1 - probability) * (value - other), (1 - probability) * math.sqrt(variance + other_variance)


def _rate(counts: Counts) -> tuple[float, float]:
    successes, failures, _ = counts
    judged = successes + failures
    shrunk = (successes + 1) / (judged + 2)
    return successes / judged, shrunk * (1 - shrunk) / judged


def save_reference(reference: Reference, path: Path = PATH) -> None:
    """Writes one completion a line."""
    head = {
        "model_digest": reference.model_digest,
        "sampler": dataclasses.asdict(reference.sampler),
        "tau": reference.tau,
        "rollouts": reference.rollouts,
        "seed": reference.seed,
    }
    lines = [json.dumps(dataclasses.asdict(completion)) for completion in reference.completions]
    text = json.dumps(head)[:-1] + ', "completions": [\n' + ",\n".join(lines) + "\n]}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def load_reference(path: Path = PATH) -> Reference:
    """Reads what `save_reference` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Reference(
        model_digest=content["model_digest"],
        sampler=SamplerSettings(**content["sampler"]),
        tau=content["tau"],
        rollouts=content["rollouts"],
        seed=content["seed"],
        completions=tuple(
            ReferenceCompletion(
                **{
                    **row,
                    "prompt_ids": tuple(row["prompt_ids"]),
                    "ids": tuple(row["ids"]),
                    "probabilities": tuple(row["probabilities"]),
                    "candidates": tuple(_candidate(candidate) for candidate in row["candidates"]),
                }
            )
            for row in content["completions"]
        ),
    )


def _candidate(row: dict[str, object]) -> ReferenceCandidate:
    alternative, after = row["alternative"], row["after"]
    return ReferenceCandidate(
        **{**row, "alternative": tuple(alternative), "after": None if after is None else tuple(after)}
    )
