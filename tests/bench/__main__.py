"""`make bench`: runs every benchmark, or those that are named, and writes `runs/bench/report.json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
import transformers
from rich.console import Console

from tests.bench.discovery.bench import bench_discovery
from tests.bench.discovery.bundled import bench_bundled
from tests.bench.serving import bench_serving

REPORT = Path("runs/bench/report.json")


def _serving(_: Console) -> dict[str, object]:
    return asyncio.run(bench_serving())


def _discovery(console: Console) -> dict[str, object]:
    return {**bench_discovery(console), "bundled": {"pivotal": bench_bundled(console)}}


BENCHMARKS: Final[Mapping[str, Callable[[Console], dict[str, object]]]] = {
    "serving": _serving,
    "discovery": _discovery,
}


def main() -> None:
    """Runs the benchmarks, prints and writes what they measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all by default")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; expected {', '.join(BENCHMARKS)}")
    console = Console()
    report: dict[str, object] = {
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    }
    for name in names:
        report[name] = BENCHMARKS[name](console)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"report in {REPORT}")


if __name__ == "__main__":
    main()
