"""Fine-tune the bundled model on its own pivotal pairs, beside plain preference optimisation on whole completions.

`python -m examples.dpo`, or `make dpo`. Takes the pivots of a finished run, or discovers them itself. Both arms train
on what that run sampled, for the same number of tokens, each with the learning rate that is best for it on validation
problems; success is measured on problems that neither the run nor the choice has seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from examples.dpo.measuring import Measuring, rate
from examples.dpo.pairs import completion_pairs, decision_pairs
from examples.dpo.recipe import ArmOutcome, Plan, difference, run_arm
from examples.dpo.training import BATCH, BETA, LEARNING_RATES, LORA_LEARNING_RATES, Recipe
from steering_engine.alias import resolve_model
from steering_engine.loading import load_model
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import DataOptions, load_problems
from steering_pts.ledger.export import write_atomically
from steering_pts.progress import RunProgress
from steering_pts.settings import SamplerSettings, SearchSettings

MODEL: Final = "demo"
_SAMPLER: Final = SamplerSettings(max_tokens=96)


def main(arguments: Sequence[str] | None = None) -> None:
    """Discovers where there is no run yet, trains both arms, measures them, and writes `report.json`."""
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder = _run(options.run, options.out, options.problems, options.seed)
    validation = load_problems(
        "demo:validation", DataOptions(limit=options.validation, shuffle_seed=options.seed)
    )
    test = load_problems("demo:test", DataOptions(limit=options.test, shuffle_seed=options.seed))
    source = resolve_model(MODEL)
    rates = options.rates or (LORA_LEARNING_RATES if options.lora else LEARNING_RATES)
    with oracle_for("math", test) as oracle, folder.read() as ledger:
        measuring = Measuring(load_model(source), oracle, _SAMPLER, options.seed)
        data = {"pivotal pairs": decision_pairs(ledger), "whole completions": completion_pairs(ledger)}
        if lacking := [name for name, pairs in data.items() if not pairs]:
            raise SystemExit(f"{folder.path} has no {lacking[0]}; discover on more problems (--problems)")
        before = measuring.solved(measuring.loaded.model, test, options.samples)
        print(f"before: {rate(before):.3f} on {len(test)} held-out problems", flush=True)
        outcomes: dict[int, dict[str, ArmOutcome]] = {}
        for tokens in options.tokens:
            plan = Plan(
                recipe=Recipe(source, options.lora),
                learning_rates=rates,
                tokens=tokens,
                seeds=range(options.trainings),
                validation=validation,
                test=test,
                samples=options.samples,
            )
            outcomes[tokens] = {}
            for name, pairs in data.items():
                print(f"{name}, {tokens} training tokens of {len(pairs)} pairs", flush=True)
                outcomes[tokens][name] = run_arm(plan, measuring, pairs, lambda line: print(line, flush=True))
    report = {
        "model": MODEL,
        "run": str(folder.path),
        "method": {"lora": options.lora, "beta": BETA, "batch": BATCH, "optimiser": "gradient descent"},
        "trainings": options.trainings,
        "held_out_problems": len(test),
        "before": rate(before),
        "budgets": {str(tokens): _figures(before, arms, options.seed) for tokens, arms in outcomes.items()},
        "seconds": round(time.perf_counter() - started),
    }
    _print(report)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = outcomes[max(outcomes)]["pivotal pairs"].model
    kept.save_pretrained(options.out / "model")
    measuring.loaded.tokenizer.save_pretrained(options.out / "model")
    write_atomically(options.out / "report.json", [json.dumps(report, indent=2)])
    print(
        f"{options.out / 'model'}: the model of the pivotal pairs; {options.out / 'report.json'}: these figures"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.dpo", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), help="finished run (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/dpo"), help="folder for what is made")
    parser.add_argument("--problems", type=int, default=32, help="problems to discover on without a run")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[200, 400],
        help="training tokens of each arm; several to compare",
    )
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters instead of all weights")
    parser.add_argument(
        "--rates", type=float, nargs="+", help="learning rates that compete on validation problems"
    )
    parser.add_argument("--trainings", type=int, default=3, help="trainings of each arm and learning rate")
    parser.add_argument("--validation", type=int, default=200, help="validation problems")
    parser.add_argument("--test", type=int, default=400, help="held-out problems")
    parser.add_argument(
        "--samples", type=int, default=1, help="completions of each held-out problem and training"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    return parser


def _run(run: Path, out: Path, problems: int, seed: int) -> RunFolder:
    """The run that was named where it is finished; else one of its own beside the report, continued or begun."""
    if (named := RunFolder(run)).pivots.is_file() and named.ledger.is_file():
        print(f"pivots of {run}")
        return named
    folder = RunFolder(out / "run")
    if not folder.pivots.is_file():
        print(f"no finished run at {run}: discovering pivots on {problems} problems")
        training = load_problems("demo:train", DataOptions(limit=problems, shuffle_seed=seed))
        with oracle_for("math", training) as oracle:
            discover_into(
                folder, ModelChoice(MODEL), training, oracle, _SAMPLER, SearchSettings(), seed, RunProgress()
            )
    return folder


def _figures(before: dict[str, list[bool]], arms: dict[str, ArmOutcome], seed: int) -> dict[str, Any]:
    """What both arms came to with the same training tokens, and the difference between them."""
    pivotal, whole = arms.values()
    return {
        "arms": {
            name: {
                "pairs": arm.pairs,
                "tokens": arm.tokens,
                "answer_tokens": arm.answer_tokens,
                "learning_rate": arm.learning_rate,
                "validation": {f"{rate_:g}": value for rate_, value in arm.validation.items()},
                "success": arm.success,
                "change": difference(before, arm.solved, seed)._asdict(),
            }
            for name, arm in arms.items()
        },
        "pivotal_over_whole": difference(whole.solved, pivotal.solved, seed)._asdict(),
    }


def _print(report: dict[str, Any]) -> None:
    print(f"\n{'':18} {'tokens':>7} {'in loss':>8} {'rate':>6} {'success':>8}  change (95 % over problems)")
    print(f"{'before':18} {'':>7} {'':>8} {'':>6} {report['before']:8.3f}")
    for budget in report["budgets"].values():
        for name, arm in budget["arms"].items():
            print(
                f"{name:18} {arm['tokens']:7.0f} {arm['answer_tokens']:8.0f} {arm['learning_rate']:6g} "
                f"{arm['success']:8.3f}  {_interval(arm['change'])}"
            )
        print(f"{'  difference':42} {'':8}  {_interval(budget['pivotal_over_whole'])}")


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"


if __name__ == "__main__":
    main()
