"""`evaluation.json` and the table: what an evaluation tells programs, and people."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.calibration.divergence import DivergenceSummary
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.effects import SideEffects
from steering_pts.evaluation.figures import ArmFigures, Figures, Lift
from steering_pts.evaluation.measuring import UNSTEERED, Measurement
from steering_pts.evaluation.served import ServedVector
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.ledger.export import write_atomically
from steering_pts.statistics import Estimate

SCHEMA: Final = "steering.evaluation/1"
_TITLES: Final = {
    ArmKind.STRENGTH_0: "strength 0",
    ArmKind.FLIPPED: "the other way",
    ArmKind.SHUFFLED_STEPS: "as many other steps",
    ArmKind.FORCED_ALTERNATIVE: "better token forced",
    ArmKind.EVERY_STEP: "at every step",
}


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

    def to_json(self) -> dict[str, Any]:
        """The object of `evaluation.json`."""
        figures, different = self.figures, self.figures.different_at_strength_0
        random = figures.random
        return {
            "schema": SCHEMA,
            "created": dt.datetime.now(dt.UTC).replace(microsecond=0).isoformat(),
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
                "max_lift": random.most,
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


def title(figures: ArmFigures) -> str:
    """An arm as people read it."""
    return _TITLES.get(figures.kind, figures.name)


def print_report(report: EvaluationReport, files: Sequence[Path]) -> None:
    """Prints the table of arms, the groups, and what should be known."""
    console = Console(highlight=False)
    measurement, figures = report.measurement, report.figures
    names = ", ".join(f"{one.name} ({one.trigger_name})" for one in report.vectors)
    console.print(
        f"{report.model} on {len(measurement.problems)} problems of {report.dataset}, "
        f"{report.settings.samples} completions each: {names}"
    )
    console.print(_arms_table(figures))
    for field, groups in figures.by_group.items():
        console.print(_groups_table(field, groups))
    for line in _lines(report):
        console.print(Text(line))
    for remark in report.remarks:
        console.print(Text(remark, style="dim"))
    for path in files:
        console.print(Text(f"written: {path}", style="dim"))


def _arms_table(figures: Figures) -> Table:
    table = Table(title="success by arm", title_justify="left")
    table.add_column("arm", no_wrap=True)
    for name in ("n", "success (95 %)", "lift (95 %)", "p", "cut off", "tokens", "repeated", "steered steps"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in figures.arms:
        if arm.kind is ArmKind.RANDOM:
            continue
        lift = figures.lift(arm.name)
        style = "bold" if arm.name == "steered" else None
        table.add_row(
            title(arm),
            f"{arm.n:,}",
            _interval(arm.success, ""),
            "" if lift is None else _interval(lift.lift, "+"),
            "" if lift is None else _p(lift),
            f"{arm.truncated:,}",
            f"{arm.tokens_mean:.1f}",
            f"{arm.repetition:.3f}",
            f"{arm.steered_steps_mean:.2f}",
            style=style,
        )
    random = figures.random
    if random is not None:
        arms = [arm for arm in figures.arms if arm.kind is ArmKind.RANDOM]
        mean = sum(arm.success.value for arm in arms) / len(arms)
        table.add_row(
            f"{random.vectors} random, same norm",
            f"{sum(arm.n for arm in arms):,}",
            f"{mean:.3f}",
            _interval(random.lift, "+"),
            "",
            f"{sum(arm.truncated for arm in arms):,}",
            f"{sum(arm.tokens_mean for arm in arms) / len(arms):.1f}",
            f"{sum(arm.repetition for arm in arms) / len(arms):.3f}",
            f"{sum(arm.steered_steps_mean for arm in arms) / len(arms):.2f}",
        )
    return table


def _groups_table(field: str, groups: dict[str, Any]) -> Table:
    table = Table(title=f"by {field}", title_justify="left")
    table.add_column(field, no_wrap=True)
    for name in ("problems", UNSTEERED, "steered", "lift (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    for value, group in groups.items():
        table.add_row(
            Text(value or "(none)"),
            f"{group.n:,}",
            f"{group.unsteered:.3f}",
            f"{group.steered:.3f}",
            "" if group.lift is None else _interval(group.lift, "+"),
        )
    return table


def _lines(report: EvaluationReport) -> list[str]:
    lines = []
    random = report.figures.random
    if random is not None:
        lines.append(
            f"random directions: best lift {random.most:+.3f}; the vectors' lift among theirs has p = {random.p:.3f}"
        )
    if report.effects is not None:
        for what, found in (
            ("steps that are not steered", report.effects.unsteered_steps),
            ("a neutral text", report.effects.neutral_text),
        ):
            if found is not None:
                lines.append(
                    f"KL per token over {what}: mean {found.mean:.4f}, 95 % quantile {found.p95:.4f} nats"
                )
    different = report.figures.different_at_strength_0
    if different is not None:
        count, compared = different
        lines.append(
            f"strength 0: all {compared:,} completions are the unsteered ones, token for token"
            if count == 0
            else f"strength 0: {count:,} of {compared:,} completions are NOT the unsteered ones; where a server's "
            "results depend on its batches (a GPU), rounding may do that, else it is an error"
        )
    if report.measurement.oracle_failures:
        lines.append(f"oracle failures: {report.measurement.oracle_failures:,} completions, censored")
    return lines


def _interval(estimate: Estimate, sign: str) -> str:
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.3f} … {estimate.high:{sign}.3f})"


def _p(lift: Lift) -> str:
    p = f"{lift.p:.4f}"
    return p if lift.holm_p is None else f"{p}, Holm {lift.holm_p:.4f}"
