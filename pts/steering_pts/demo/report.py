"""What the demonstration reports: `report.json`, a table, and one example with the steered steps marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.data import Problem
from steering_pts.evaluation import ArmResult
from steering_pts.ledger.records import LedgerSummary
from steering_pts.statistics import Estimate
from steering_pts.vectors.pipeline import MadeVector
from steering_spec import Completion


@dataclass(frozen=True, slots=True)
class DemoFigures:
    """Everything that the demonstration measured."""

    model: str
    problems: int
    summary: LedgerSummary
    pivots: Sequence[dict[str, Any]]
    vectors: Sequence[MadeVector]
    unsteered: ArmResult
    steered: ArmResult
    every_step: ArmResult
    random: Sequence[ArmResult]
    lift: Estimate
    seconds: float

    @property
    def tokens_generated(self) -> int:
        """Tokens of the discovery: completions and rollouts."""
        return self.summary.completion_tokens + self.summary.rollout_tokens


def write_report(path: Path, figures: DemoFigures) -> None:
    """Writes the report in one step."""
    random = [arm.success for arm in figures.random]
    report = {
        "model": figures.model,
        "problems": figures.problems,
        "completions": sum(figures.summary.completions.values()),
        "rollouts": sum(figures.summary.rollouts.values()),
        "tokens_generated": figures.tokens_generated,
        "pivots": list(figures.pivots),
        "vectors": [
            {"name": made.name, "method": made.method, "layer": made.block, "strength": made.strength}
            for made in figures.vectors
        ],
        "unsteered": _arm(figures.unsteered),
        "steered": _arm(figures.steered),
        "every_step": _arm(figures.every_step),
        "random": {
            "n": len(figures.random[0].solved),
            "vectors": len(random),
            "success_mean": sum(random) / len(random),
            "success_max": max(random),
        },
        "lift": figures.lift.value,
        "lift_ci95": [figures.lift.low, figures.lift.high],
        "seconds": round(figures.seconds, 1),
    }
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _arm(result: ArmResult) -> dict[str, float]:
    return {"n": len(result.solved), "success": result.success}


def print_report(
    figures: DemoFigures,
    problems: Sequence[Problem],
    decode: Callable[[Sequence[int]], str],
    left_out: Sequence[str],
    path: Path,
) -> None:
    """Prints the table and the example."""
    console = Console(highlight=False)
    kinds = Counter(pivot["kind"] for pivot in figures.pivots)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    console.print(
        f"\n{len(figures.pivots)} pivotal tokens ({found}) in {figures.summary.scored} completions, "
        f"from {figures.tokens_generated:,} generated tokens"
    )
    for made in figures.vectors:
        console.print(
            f"vector [bold]{made.name}[/bold]: {made.method} at block {made.block}, strength {made.strength:.3g}, "
            f"from {made.events} pivots"
        )
    for sentence in left_out:
        console.print(Text(f"left out: {sentence}", style="dim"))
    _print_arms(console, figures)
    lift = figures.lift
    console.print(
        f"lift {lift.value:+.3f}, 95 % interval {lift.low:+.3f} … {lift.high:+.3f} (bootstrap over problems)"
    )
    _print_example(console, figures, problems, decode)
    console.print(f"\n{figures.seconds:.0f} s; report in {path}")


def _print_arms(console: Console, figures: DemoFigures) -> None:
    count = len(figures.unsteered.solved)
    table = Table(title=f"success on {count} held-out problems, through the client", title_justify="left")
    table.add_column("arm")
    table.add_column("success", justify="right")
    random = [arm.success for arm in figures.random]
    table.add_row("unsteered", f"{figures.unsteered.success:.3f}")
    table.add_row("steered at pivotal positions", f"{figures.steered.success:.3f}", style="bold")
    table.add_row("same vectors at every step", f"{figures.every_step.success:.3f}")
    spread = f"{sum(random) / len(random):.3f} (best {max(random):.3f})"
    table.add_row(f"{len(random)} random vectors, same norm and positions", spread)
    console.print(table)


def _print_example(
    console: Console,
    figures: DemoFigures,
    problems: Sequence[Problem],
    decode: Callable[[Sequence[int]], str],
) -> None:
    """The first problem that steering turned from wrong to right, with the tokens of steered steps marked."""
    pairs = zip(problems, figures.unsteered.solved, figures.steered.solved, strict=True)
    for index, (problem, before, after) in enumerate(pairs):
        if after and not before:
            console.print(
                f"\nexample: {problem.question} = {problem.answer} ([reverse]marked[/reverse]: steered step)"
            )
            console.print(Text("unsteered  ") + _marked(figures.unsteered.completions[index], decode))
            console.print(Text("steered    ") + _marked(figures.steered.completions[index], decode))
            return


def _marked(completion: Completion, decode: Callable[[Sequence[int]], str]) -> Text:
    steered = {act.step for act in completion.acts}
    text = Text()
    for step, token_id in enumerate(completion.ids):
        piece = decode([token_id])
        if step in steered:
            bare = piece.lstrip()
            text.append(piece[: len(piece) - len(bare)])
            text.append(f"[{bare}]", style="reverse")
        else:
            text.append(piece)
    return text
