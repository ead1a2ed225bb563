"""Calibration by successive halving against the full grid, on the bundled model: how good, for how many rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from steering_engine.alias import resolve_model
from steering_engine.model import SteeredModel
from steering_pts.calibration.calibrating import calibrate_groups
from steering_pts.calibration.candidates import CandidateGroup, load_candidates, read_candidates
from steering_pts.calibration.draws import draws_of
from steering_pts.calibration.grid import compare_group, contenders_of
from steering_pts.calibration.log import CalibrationLog
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.settings import settings_of
from steering_pts.calibration.trials import Bench, Trials
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import EngineRollouts
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.vectors.options import VectorOptions
from steering_pts.vectors.pipeline import make_candidates

SEED: Final = 20_263
FOLDER: Final = Path("runs/bench/calibration")
PROBLEMS: Final = 120
_TRAINING: Final = 32
_TEST: Final = 250
_TEST_SAMPLES: Final = 2
_REPEATS: Final = 3
_SAMPLER: Final = SamplerSettings(max_tokens=96)


def bench_calibration(console: Console, problems: int = PROBLEMS, folder: Path = FOLDER) -> dict[str, Any]:
    """Calibrates each group of the bundled model's pivots, and measures the whole grid beside it, for several seeds.

    What is interrupted goes on: everything measured is kept in logs in `folder`.

    Returns:
        `repeats`: for each seed and group, `chosen` and `best_of_grid` (setting, success on test problems), `gap`
        between the two, `rollouts`, `grid_rollouts`, and their `share`. The best of the grid is the best on test
        problems of the five that are best on the validation problems, within the budget of divergence: it is favoured
        by that, the chosen one is not. And over all of them `gap_mean`, `gap_largest` and `share_largest`.
    """
    run = RunFolder(folder / "run")
    training = load_problems("demo:train", DataOptions(limit=_TRAINING, shuffle_seed=SEED))
    with oracle_for("math", training) as oracle:
        discover_into(
            run, ModelChoice("demo"), training, oracle, _SAMPLER, SearchSettings(), SEED, RunProgress()
        )
    repeats = []
    for seed in range(SEED, SEED + _REPEATS):
        with _bench(problems, seed) as (bench, validation, test):
            with run.read() as ledger:
                make_candidates(ledger, bench.model.loaded, run.path, VectorOptions(), RunProgress())
            groups = read_candidates(run.candidates)
            load_candidates(bench.model, groups, run.candidates)
            with closing(CalibrationLog(folder / f"calibration-{seed}.jsonl", {"seed": seed})) as log:
                repeats += _compare(groups, bench, log, validation, test)
    console.print(_table(repeats))
    gaps = [row["gap"] for row in repeats]
    return {
        "repeats": repeats,
        "gap_mean": sum(gaps) / len(gaps),
        "gap_largest": max(gaps),
        "share_largest": max(row["share"] for row in repeats),
    }


@contextmanager
def _bench(problems: int, seed: int) -> Iterator[tuple[Bench, list[Problem], list[Problem]]]:
    validation = load_problems("demo:validation", DataOptions(limit=problems, shuffle_seed=seed))
    test = load_problems("demo:test", DataOptions(limit=_TEST, shuffle_seed=seed))
    model = SteeredModel.load(resolve_model("demo"))
    everything = [*validation, *test]
    with (
        EngineRollouts(model, _SAMPLER) as source,
        oracle_for("math", everything) as oracle,
    ):
        prompts = encode_prompts(model, everything, raw=False)
        by_id = {problem.id: problem for problem in everything}
        yield (
            Bench(model, source, oracle, by_id, prompts, _SAMPLER, seed, RunProgress()),
            validation,
            test,
        )


def _compare(
    groups: Sequence[CandidateGroup],
    bench: Bench,
    log: CalibrationLog,
    validation: list[Any],
    test: list[Any],
) -> dict[str, Any]:
    # Without the control that acts at every step: the budget of divergence rules it out, and its answers are long.
    options = CalibrationOptions(triggers=("context", "probe", "similarity"))
    report = []
    vectors = {group.ids[method]: vector for group in groups for method, vector in group.vectors.items()}
    trials = Trials(bench, vectors, log, [one for group in groups for one in settings_of(group, options)])
    fresh = draws_of(test, _TEST_SAMPLES, bench.seed)
    for group in groups:
        (result,) = calibrate_groups([group], bench, options, log, validation).groups
        contenders = contenders_of(group, trials, options, draws_of(validation, 1, bench.seed))
        compared = compare_group(group.name, contenders, result.chosen, trials, fresh)
        report.append(
            {
                "seed": bench.seed,
                "group": group.name,
                "settings": len(settings_of(group, options)),
                "problems": len(validation),
                "unsteered": compared.unsteered,
                "chosen": {
                    "setting": str(result.chosen),
                    "success": compared.chosen,
                    "kept": result.kept,
                },
                "best_of_grid": {"setting": str(compared.best), "success": compared.best_of_grid},
                "gap": compared.best_of_grid - compared.chosen,
                "rollouts": result.rollouts,
                "grid_rollouts": result.grid_rollouts,
                "share": result.rollouts / result.grid_rollouts,
                "rounds": [one._asdict() for one in result.rounds],
            }
        )
    return report


def _table(repeats: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="calibration: halving against the full grid", title_justify="left")
    for name in ("seed", "group", "unsteered", "chosen", "best of grid", "gap", "rollouts"):
        table.add_column(name, overflow="fold")
    for row in repeats:
        table.add_row(
            str(row["seed"]),
            row["group"],
            f"{row['unsteered']:.3f}",
            *(f"{row[key]['success']:.3f} {row[key]['setting']}" for key in ("chosen", "best_of_grid")),
            f"{row['gap']:+.3f}",
            f"{row['rollouts']} of {row['grid_rollouts']} ({row['share']:.0%})",
        )
    return table
