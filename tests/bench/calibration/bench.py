"""Calibration by successive halving against the full grid, on the bundled model: how good, for how many rollouts."""

from __future__ import annotations

import dataclasses
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
from steering_pts.calibration.draws import DrawOrder, draws_of
from steering_pts.calibration.log import CalibrationLog
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.settings import settings_of
from steering_pts.calibration.trials import UNSTEERED, Arm, Bench, Trials
from steering_pts.cli.run import ModelChoice, RunFolder, discover_into, oracle_for
from steering_pts.data import DataOptions, load_problems
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import EngineRollouts
from steering_pts.settings import SamplerSettings, SearchSettings
from tests.bench.calibration.candidates import write_candidates

SEED: Final = 20_263
FOLDER: Final = Path("runs/bench/calibration")
PROBLEMS: Final = 120
_TRAINING: Final = 32
_TEST: Final = 250
_TEST_SAMPLES: Final = 2
_CONTENDERS: Final = 5
_SAMPLER: Final = SamplerSettings(max_tokens=96)


def bench_calibration(console: Console, problems: int = PROBLEMS, folder: Path = FOLDER) -> dict[str, Any]:
    """Calibrates each group of the bundled model's pivots, and measures the whole grid beside it.

    What is interrupted goes on: everything measured is kept in a log in `folder`.

    Returns:
        By group: `chosen` and `best_of_grid` (setting, success on test problems), `gap` between the two, `rollouts`,
        `grid_rollouts`, and their `share`. The best of the grid is the best on test problems of the five that are best
        on the validation problems, within the budget of divergence: it is favoured by that, never the chosen one.
    """
    run = RunFolder(folder / "run")
    training = load_problems("demo:train", DataOptions(limit=_TRAINING, shuffle_seed=SEED))
    with oracle_for("math", training) as oracle:
        discover_into(
            run, ModelChoice("demo"), training, oracle, _SAMPLER, SearchSettings(), SEED, RunProgress()
        )
    with _bench(problems) as (bench, validation, test):
        candidates = folder / "candidates"
        if not candidates.is_dir():
            candidates.mkdir(parents=True)
            write_candidates(bench.model.loaded, run, candidates)
        groups = read_candidates(candidates)
        load_candidates(bench.model, groups, candidates)
        with closing(CalibrationLog(folder / "calibration.jsonl", {"seed": SEED})) as log:
            report = _compare(groups, bench, log, validation, test)
    console.print(_table(report))
    return report


@contextmanager
def _bench(problems: int) -> Iterator[tuple[Bench, list[Any], list[Any]]]:
    validation = load_problems("demo:validation", DataOptions(limit=problems, shuffle_seed=SEED))
    test = load_problems("demo:test", DataOptions(limit=_TEST, shuffle_seed=SEED))
    model = SteeredModel.load(resolve_model("demo"))
    everything = [*validation, *test]
    with (
        EngineRollouts(model, _SAMPLER) as source,
        oracle_for("math", everything) as oracle,
    ):
        prompts = encode_prompts(model, everything, raw=False)
        by_id = {problem.id: problem for problem in everything}
        yield (
            Bench(model, source, oracle, by_id, prompts, _SAMPLER, SEED, RunProgress()),
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
    report: dict[str, Any] = {}
    vectors = {group.ids[method]: vector for group in groups for method, vector in group.vectors.items()}
    trials = Trials(bench, vectors, log, [one for group in groups for one in settings_of(group, options)])
    fresh = draws_of(test, _TEST_SAMPLES, SEED)
    for group in groups:
        (result,) = calibrate_groups([group], bench, options, log, validation).groups
        settings = settings_of(group, options)
        draws = draws_of(validation, 1, SEED)
        unsteered, *grid = trials.measure(
            [(UNSTEERED, draws), *((Arm((one,)), draws) for one in settings)], f"{group.name}: the full grid"
        )
        order = DrawOrder(tuple(draws), (True,) * len(draws))
        strengths = [order.estimate(outcomes, unsteered) for outcomes in grid]
        within = [i for i, strength in enumerate(strengths) if strength.kl <= options.kl_budget]
        best = sorted(within, key=lambda i: (-strengths[i].lift, strengths[i].kl))[:_CONTENDERS]
        contenders = [settings[i] for i in best]
        arms = [UNSTEERED, *(Arm((one,)) for one in contenders)]
        if result.chosen is not None:
            arms.append(Arm((result.chosen,)))
        measured = trials.measure([(arm, fresh) for arm in arms], f"{group.name}: on test problems")
        rates = [sum(one.solved for one in outcomes) / len(fresh) for outcomes in measured]
        of_contenders = rates[1 : 1 + len(contenders)]
        top = max(range(len(contenders)), key=of_contenders.__getitem__)
        report[group.name] = {
            "settings": len(settings),
            "problems": len(validation),
            "unsteered": rates[0],
            "chosen": None
            if result.chosen is None
            else {"setting": str(result.chosen), "success": rates[-1], "kept": result.kept},
            "best_of_grid": {"setting": str(contenders[top]), "success": of_contenders[top]},
            "first_of_grid": {"setting": str(contenders[0]), "success": of_contenders[0]},
            "gap": of_contenders[top] - (rates[-1] if result.chosen is not None else rates[0]),
            "rollouts": result.rollouts,
            "grid_rollouts": result.grid_rollouts,
            "share": result.rollouts / result.grid_rollouts,
            "rounds": [one._asdict() for one in result.rounds],
            "options": dataclasses.asdict(options),
        }
    return report


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="calibration: halving against the full grid", title_justify="left")
    for name in ("group", "settings", "chosen", "success", "best of grid", "success", "gap", "rollouts"):
        table.add_column(name)
    for name, row in report.items():
        chosen = row["chosen"] or {"setting": "none", "success": row["unsteered"]}
        table.add_row(
            name,
            str(row["settings"]),
            chosen["setting"],
            f"{chosen['success']:.3f}",
            row["best_of_grid"]["setting"],
            f"{row['best_of_grid']['success']:.3f}",
            f"{row['gap']:+.3f}",
            f"{row['rollouts']} of {row['grid_rollouts']} ({row['share']:.0%})",
        )
    return table
