"""`evaluation.json`: what an evaluation tells programs."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steering_pts.calibration.divergence import DivergenceSummary
from steering_pts.evaluation.effects import SideEffects
from steering_pts.evaluation.figures import ArmFigures, Figures, Lift
from steering_pts.evaluation.measuring import Measurement
from steering_pts.evaluation.served import ServedVector
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.ledger.export import write_atomically

SCHEMA: Final = "steering.evaluation/1"


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation came to.

    Attributes:
        model: The model that was served.
        dataset: Where the problems are from.
        settings: What was measured, and how.
        vectors: The vectors.
        measurement: Every completion with its verdict.
        figures: The figures.
        effects: Side effects; None where they were not measured.
        remarks: A sentence for each arm or figure that was left out, and for what should be known.
        seconds: How long it took, of this command.
        created: When it was finished.
    """

    model: str
    dataset: str
    settings: EvaluationSettings
    vectors: tuple[ServedVector, ...]
    measurement: Measurement
    figures: Figures
    effects: SideEffects | None
    remarks: tuple[str, ...]
    seconds: float
    created: dt.datetime

    def to_json(self) -> dict[str, Any]:
        """The object of `evaluation.json`."""
        figures, different = self.figures, self.figures.different_at_strength_0
        random = figures.random
        return {
            "schema": SCHEMA,
            "created": self.created.isoformat(),
            "model": self.model,
            "dataset": self.dataset,
            "problems": len(self.measurement.problems),
            "samples_per_problem": self.settings.samples,
            "control_samples_per_problem": self.settings.control_samples,
            "seed": self.settings.seed,
            "vectors": [_vector(one) for one in self.vectors],
            "arms": [_arm(one) for one in figures.arms],
            "lifts": [_lift(one) for one in figures.lifts],
            "kl_unsteered_steps": self._divergence("unsteered_steps"),
            "kl_neutral_text": self._divergence("neutral_text"),
            "by_group": {
                field: {
                    value: {
                        "n": group.n,
                        "unsteered": group.unsteered,
                        "steered": group.steered,
                        "lift": None if group.lift is None else group.lift.value,
                        "low": None if group.lift is None else group.lift.low,
                        "high": None if group.lift is None else group.lift.high,
                    }
                    for value, group in groups.items()
                }
                for field, groups in figures.by_group.items()
            },
            "random": None
            if random is None
            else {
                "vectors": random.vectors,
                "mean_lift": random.lift.value,
                "low": random.lift.low,
                "high": random.lift.high,
                "lifts": list(random.lifts),
                "permutation_p": random.p,
            },
            "strength_0_identical": None if different is None else different[0] == 0,
            "strength_0": None
            if different is None
            else {"compared": different[1], "different": different[0]},
            "oracle_failures": self.measurement.oracle_failures,
            "remarks": list(self.remarks),
            "seconds": round(self.seconds, 1),
        }

    def write(self, path: Path) -> None:
        """Writes `evaluation.json` in one step.

        Raises:
            LedgerError: It can't be written.
        """
        write_atomically(path, [json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)])

    def _divergence(self, name: str) -> dict[str, float] | None:
        found: DivergenceSummary | None = None if self.effects is None else getattr(self.effects, name)
        return None if found is None else {"mean": found.mean, "p95": found.p95, "steps": found.steps}


def _vector(served: ServedVector) -> dict[str, Any]:
    strengths = served.vector.metadata.calibrated_strength
    return {
        "name": served.name,
        "sha256": served.sha256,
        "block": served.blocks[0],
        "blocks": list(served.blocks),
        "method": served.vector.metadata.method,
        "strength": served.strength * strengths[served.blocks[0]],
        "strengths": {str(block): served.strength * strengths[block] for block in served.blocks},
        "trigger": served.trigger_name,
    }


def _arm(figures: ArmFigures) -> dict[str, Any]:
    return {
        "name": figures.name,
        "kind": figures.kind.value,
        "n": figures.n,
        "success": figures.success.value,
        "low": figures.success.low,
        "high": figures.success.high,
        "censored": figures.censored,
        "tokens_mean": figures.tokens_mean,
        "truncated": figures.truncated,
        "broken": figures.broken,
        "repetition": figures.repetition,
        "steered_steps_mean": figures.steered_steps_mean,
    }


def _lift(lift: Lift) -> dict[str, Any]:
    return {
        "arm": lift.arm,
        "value": lift.lift.value,
        "low": lift.lift.low,
        "high": lift.lift.high,
        "permutation_p": lift.p,
        "holm_p": lift.holm_p,
    }
