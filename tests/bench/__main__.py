"""`make bench`: runs every benchmark, or those that are named, and writes `runs/bench/report.json`.

The keys of the engine's ratios are `engine.{comparison}`, those of the search are below `discovery`, those of
calibration below `calibration`, those of the server below `server`.
"""

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

from tests.bench.calibration.bench import bench_calibration
from tests.bench.discovery.bench import bench_discovery
from tests.bench.discovery.bundled import bench_bundled
from tests.bench.engine.bench import bench_engine
from tests.bench.engine.models import MODELS
from tests.bench.server.bench import bench_server

REPORT = Path("runs/bench/report.json")
_BOTH = "both"


def _engine(options: argparse.Namespace, console: Console) -> dict[str, object]:
    names = list(MODELS) if options.model == _BOTH else [options.model]
    return asyncio.run(bench_engine(names, options.device, options.runs, options.tokens, console))


def _discovery(_: argparse.Namespace, console: Console) -> dict[str, object]:
    return {"discovery": {**bench_discovery(console), "bundled": {"pivotal": bench_bundled(console)}}}


def _calibration(_: argparse.Namespace, console: Console) -> dict[str, object]:
    return {"calibration": bench_calibration(console)}


def _server(options: argparse.Namespace, console: Console) -> dict[str, object]:
    names = list(MODELS) if options.model == _BOTH else [options.model]
    return {"server": asyncio.run(bench_server(names, options.runs, options.tokens, console))}


BENCHMARKS: Final[Mapping[str, Callable[[argparse.Namespace, Console], dict[str, object]]]] = {
    "engine": _engine,
    "discovery": _discovery,
    "calibration": _calibration,
    "server": _server,
}


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is not at least 1")
    return count


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    """Runs the benchmarks, prints and writes what they measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all by default")
    engine = parser.add_argument_group("engine and server (which is measured on the CPU)")
    engine.add_argument(
        "--model", choices=[*MODELS, _BOTH], default=_BOTH, help="measured model (%(default)s)"
    )
    engine.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    engine.add_argument("--runs", type=_count, default=5, help="timed pairs of batches (%(default)s)")
    own = ", ".join(f"{setting.tokens} for {name}" for name, setting in MODELS.items())
    engine.add_argument("--tokens", type=_count, help=f"tokens that each request generates ({own})")
    options = parser.parse_args()
    names = options.names or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; expected {', '.join(BENCHMARKS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"device {options.device!r} was asked for, but this machine has no CUDA device")
    console = Console()
    report: dict[str, object] = {
        "machine": {
            "processor": platform.machine(),
            "device": _device_name(options.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    }
    for name in names:
        report |= BENCHMARKS[name](options, console)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"report in {REPORT}")


if __name__ == "__main__":
    main()
