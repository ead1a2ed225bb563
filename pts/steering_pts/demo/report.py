"""What the demonstration reports: `report.json`, tables, and one example with the steered steps marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from steering_pts.calibration.results import CalibrationResult
from steering_pts.cli.calibration_tables import print_calibration
from steering_pts.demo.probe_quality import ProbeQuality
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.figures import ArmFigures
from steering_pts.evaluation.measuring import STEERED
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.evaluation.samples import Sample
from steering_pts.evaluation.table import print_report as print_evaluation
from steering_pts.ledger.export import write_atomically
from steering_pts.ledger.records import LedgerSummary

FORM: Final = "form"
"""Field of the data whose values are told apart: the forms of the problems."""


@dataclass(frozen=True, slots=True)
class DemoFigures:
    """Everything that the demonstration measured."""

    model: str
    problems: int
    summary: LedgerSummary
    pivots: Sequence[dict[str, Any]]
    calibration: CalibrationResult
    left_out: Sequence[str]
    probe: ProbeQuality
    evaluation: EvaluationReport
    seconds: float

    @property
    def tokens_generated(self) -> int:
        """Tokens of the discovery: completions and rollouts."""
        return self.summary.completion_tokens + self.summary.rollout_tokens


def write_report(path: Path, figures: DemoFigures) -> None:
    """Writes the report in one step."""
    evaluation, calibration = figures.evaluation, figures.calibration
    lift = evaluation.figures.lift(STEERED)
    steered = _arm(evaluation, ArmKind.STEERED)
    random = evaluation.figures.random
    effects = evaluation.effects
    kl = None if effects is None else effects.unsteered_steps
    assert lift is not None  # noqa: S101 -- the steered arm is always measured
    report = {
        "model": figures.model,
        "problems": figures.problems,
        "completions": sum(figures.summary.completions.values()),
        "rollouts": sum(figures.summary.rollouts.values()),
        "tokens_generated": figures.tokens_generated,
        "pivots": list(figures.pivots),
        "vectors": [
            {
                "name": group.name,
                "method": group.chosen.method,
                "layer": group.chosen.block,
                "strength": group.chosen.strength,
                "trigger": str(group.chosen.trigger),
            }
            for group in calibration.groups
            if group.kept and group.chosen is not None
        ],
        "unsteered": _share(_arm(evaluation, ArmKind.UNSTEERED)),
        "steered": _share(steered),
        "every_step": _share(_arm(evaluation, ArmKind.EVERY_STEP)),
        "random": _random(evaluation),
        "lift": lift.lift.value,
        "lift_ci95": [lift.lift.low, lift.lift.high],
        "forms": {
            name: {"n": form.n, "unsteered": form.unsteered, "steered": form.steered}
            for name, form in evaluation.figures.by_group[FORM].items()
        },
        "permutation_p": None if random is None else random.p,
        "kl_unsteered_steps": None if kl is None else kl.mean,
        "steered_steps_mean": steered.steered_steps_mean,
        "strength_0_identical": evaluation.figures.different_at_strength_0 is not None
        and evaluation.figures.different_at_strength_0[0] == 0,
        "probe": {
            "auc": figures.probe.auc,
            "precision": figures.probe.precision,
            "recall": figures.probe.recall,
        },
        "calibration": _calibration(calibration),
        "seconds": round(figures.seconds, 1),
    }
    write_atomically(path, [json.dumps(report, indent=2, allow_nan=False) + "\n"])


def _arm(evaluation: EvaluationReport, kind: ArmKind) -> ArmFigures:
    return next(arm for arm in evaluation.figures.arms if arm.kind is kind)


def _share(arm: ArmFigures) -> dict[str, float]:
    return {"n": arm.n, "success": arm.success.value}


def _random(evaluation: EvaluationReport) -> dict[str, float]:
    arms = [arm for arm in evaluation.figures.arms if arm.kind is ArmKind.RANDOM]
    success = [arm.success.value for arm in arms]
    random = evaluation.figures.random
    assert random is not None  # noqa: S101 -- the demonstration asks for them
    return {
        "n": arms[0].n,
        "vectors": len(arms),
        "success_mean": sum(success) / len(success),
        "success_max": max(success),
        "lift_mean": random.lift.value,
    }


def _calibration(calibration: CalibrationResult) -> dict[str, Any]:
    grid = calibration.grid
    assert grid is not None  # noqa: S101 -- the demonstration asks for it
    return {
        "rollouts": sum(group.rollouts for group in calibration.groups),
        "grid_rollouts": sum(group.grid_rollouts for group in calibration.groups),
        "chosen": grid.chosen,
        "best_of_grid": grid.best_of_grid,
    }


def print_report(figures: DemoFigures, decode: Callable[[Sequence[int]], str], paths: Sequence[Path]) -> None:
    """Prints the tables and the example."""
    console = Console(highlight=False)
    kinds = Counter(pivot["kind"] for pivot in figures.pivots)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    console.print(
        f"\n{len(figures.pivots)} pivotal tokens ({found}) in {figures.summary.scored} completions, "
        f"from {figures.tokens_generated:,} generated tokens"
    )
    for sentence in figures.left_out:
        console.print(Text(f"left out: {sentence}", style="dim"))
    print_calibration(figures.calibration, {"": paths[0]}, as_json=False)
    probe = figures.probe
    precision = "not known, since they never fire" if probe.precision is None else f"{probe.precision:.3f}"
    console.print(
        f"probes at {probe.pivotal} pivotal steps and {probe.steps - probe.pivotal:,} others of unseen problems: "
        f"precision {precision}, recall {probe.recall:.3f}, AUC {probe.auc:.3f}"
    )
    print_evaluation(figures.evaluation, [])
    _print_example(console, figures.evaluation, decode)
    console.print(f"\n{figures.seconds:.0f} s; {' and '.join(map(str, paths))}", soft_wrap=True)


def _print_example(
    console: Console, evaluation: EvaluationReport, decode: Callable[[Sequence[int]], str]
) -> None:
    """The first completion that steering turned from wrong to right, with the tokens of steered steps marked."""
    measured = evaluation.measurement
    unsteered, steered = measured.unsteered, measured.steered
    for row, problem in enumerate(measured.problems):
        for column, (before, after) in enumerate(
            zip(unsteered.solved[row], steered.solved[row], strict=True)
        ):
            if after and not before:
                console.print(
                    f"\nexample: {problem.question} = {problem.answer} ([reverse]marked[/reverse]: steered step)"
                )
                console.print(Text("unsteered  ") + _marked(unsteered.samples[row][column], decode))
                console.print(Text("steered    ") + _marked(steered.samples[row][column], decode))
                return


def _marked(sample: Sample, decode: Callable[[Sequence[int]], str]) -> Text:
    text = Text()
    for step, token_id in enumerate(sample.ids):
        piece = decode([token_id])
        if step in sample.steered_steps:
            bare = piece.lstrip()
            text.append(piece[: len(piece) - len(bare)])
            text.append(f"[{bare}]", style="reverse")
        else:
            text.append(piece)
    return text
