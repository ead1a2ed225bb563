"""What was measured, as the keys of the report and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tests.bench.engine.comparisons import Comparison
from tests.bench.engine.traffic import PROMPT_TOKENS


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison of one model.

    Attributes:
        name: Of the comparison.
        place: Below the comparison's name in the report: the model's name, and the number of requests where several
            batches are compared.
        result: What was measured, or the reason why it can't be on this device.
    """

    name: str
    place: tuple[str, ...]
    result: Comparison | str

    @property
    def sentence(self) -> str:
        """The finding for a reader who waits for it."""
        what = f"{self.name}, {', '.join(self.place)}"
        if isinstance(self.result, str):
            return f"{what}: not measured: {self.result}"
        ratio = self.result.speeds.summary
        return f"{what}: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"


def engine_report(findings: Sequence[Finding]) -> dict[str, object]:
    """The report's keys: `engine.{comparison}`, and what was timed for them.

    Returns:
        `engine.{comparison}`: by model (and number of requests), the ratio of throughputs over all runs as `median`,
        `min`, `max` and `runs`, or `refused` with a reason.
        `engine.timed`: by comparison and model, what each arm was: its `requests`, `prompt_tokens` and
        `tokens_per_request`; the `tokens` and `steps` of all runs together; tokens per second of both arms (medians);
        and the ratio of each run. A request takes a step for each of its tokens; a batch takes one more where its last
        requests were admitted after its first step had begun.
    """
    report: dict[str, Any] = {}
    timed: dict[str, Any] = {}
    for finding in findings:
        key = f"engine.{finding.name}"
        if isinstance(finding.result, str):
            _put(report, (key, *finding.place), {"refused": finding.result})
            continue
        _put(report, (key, *finding.place), finding.result.speeds.summary)
        _put(timed, (finding.name, *finding.place), _timed(finding.result))
    return {**report, "engine.timed": timed}


def _put(tree: dict[str, Any], place: Sequence[str], value: object) -> None:
    for name in place[:-1]:
        tree = tree.setdefault(name, {})
    tree[place[-1]] = value


def _timed(comparison: Comparison) -> dict[str, object]:
    runs = len(comparison.speeds.ratios)
    return {
        "requests": comparison.requests,
        "prompt_tokens": PROMPT_TOKENS,
        "tokens_per_request": comparison.tokens,
        "tokens": comparison.requests * comparison.tokens * runs,
        "steps": comparison.tokens * runs,
        "tokens_per_second": statistics.median(comparison.speeds.changed),
        "baseline_tokens_per_second": statistics.median(comparison.speeds.baseline),
        "ratios": comparison.speeds.ratios,
    }


def engine_table(findings: Sequence[Finding]) -> Table:
    """A line for each finding; tokens per second are those of the arm over the baseline."""
    table = Table(title="engine: ratios of throughput", title_justify="left", box=SIMPLE_HEAD)
    for column in ("comparison", "model", "batch", "tokens/s", "median (min to max)"):
        table.add_column(column, no_wrap=column == "comparison")
    for finding in findings:
        if isinstance(finding.result, str):
            table.add_row(finding.name, finding.place[0], "-", "-", f"not measured: {finding.result}")
            continue
        speeds = finding.result.speeds
        ratio = speeds.summary
        table.add_row(
            finding.name,
            finding.place[0],
            f"{finding.result.requests} x {finding.result.tokens}",
            f"{statistics.median(speeds.changed):,.0f}",
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
        )
    return table
