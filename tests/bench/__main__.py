"""`make bench`: runs every benchmark and writes `runs/bench/report.json`."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path

import torch
import transformers

from tests.bench.serving import bench_serving

REPORT = Path("runs/bench/report.json")


def main() -> None:
    """Runs the benchmarks, prints and writes what they measured."""
    report = {
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "serving": asyncio.run(bench_serving()),
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report in {REPORT}")


if __name__ == "__main__":
    main()
