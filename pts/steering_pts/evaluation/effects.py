"""Side effects: how far the model's other words move when it is steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel, load_model
from steering_pts.calibration.divergence import (
    DivergenceSummary,
    TracedCompletion,
    kl_per_token,
    summarise,
)
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import steered
from steering_pts.evaluation.measuring import MeasuredArm, Prompt
from steering_pts.evaluation.neutral import neutral_completions
from steering_pts.evaluation.served import ServedVector
from steering_pts.progress import RunProgress
from steering_spec import PromptIds, SteeringSpec


@dataclass(frozen=True, slots=True)
class SideEffects:
    """KL(steered || unsteered) in nats per token, over the whole vocabulary at temperature 1.

    Attributes:
        unsteered_steps: Over the steps of the steered completions at which nothing was done; None where there is none.
        neutral_text: Over all steps of a neutral text; None without one.
    """

    unsteered_steps: DivergenceSummary | None
    neutral_text: DivergenceSummary | None


def side_effects(
    model: str,
    device: str,
    dtype: str,
    measured: MeasuredArm,
    prompts: Sequence[Prompt],
    vectors: Sequence[ServedVector],
    neutral: str | None,
    progress: RunProgress,
) -> SideEffects:
    """Loads the model and teacher-forces the steered completions, and a neutral text where there is one.

    Args:
        model: `demo`, a folder or a hub id.
        device: As `load_model` takes it.
        dtype: As `load_model` takes it.
        measured: The steered arm.
        prompts: The prompts of its problems, as ids.
        vectors: The vectors, in the order of its rules.
        neutral: A neutral text.
        progress: Shows how far it is.

    Raises:
        ModelError: The model can't be loaded.
        EvaluationError: The neutral text has fewer than two tokens.
    """
    loaded = load_model(resolve_model(model), device, dtype)
    by_id = {one.id: one.vector for one in vectors}
    steering = steered(vectors)
    traced = _traced(measured, prompts, steering)
    with progress.phase("side effects", len(traced)) as advance:
        own = summarise(kl_per_token(loaded, traced, by_id, advance))
    return SideEffects(own, None if neutral is None else _neutral(loaded, neutral, vectors, steering))


def _traced(
    measured: MeasuredArm, prompts: Sequence[Prompt], steering: SteeringSpec
) -> list[TracedCompletion]:
    return [
        TracedCompletion(prompt.ids, sample.ids, steering, sample.acts)
        for prompt, own in zip(prompts, measured.samples, strict=True)
        if isinstance(prompt, PromptIds)
        for sample in own
        if sample.ids
    ]


def _neutral(
    loaded: LoadedModel, text: str, vectors: Sequence[ServedVector], steering: SteeringSpec
) -> DivergenceSummary | None:
    by_id = {one.id: one.vector for one in vectors}
    return summarise(
        kl_per_token(loaded, neutral_completions(loaded, text, vectors, steering), by_id), every_step=True
    )


def read_neutral(path: Path) -> str:
    """A neutral text from a file.

    Raises:
        EvaluationError: It can't be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is not a text in UTF-8") from None
    except OSError as error:
        raise EvaluationError(f"{path} can't be read: {error.strerror}") from error
