"""The demonstration: the whole way on the bundled model, from pivots to steered answers, with its measured effect."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from steering_engine.alias import resolve_model
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.results import CalibrationResult
from steering_pts.calibration.run import calibrate_into
from steering_pts.calibration.trials import Bench
from steering_pts.cli.report import write_page
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for, rollouts
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.demo.kinds import decision_kind
from steering_pts.demo.probe_quality import ProbeQuality, measure_probe, pivot_probe
from steering_pts.demo.report import FORM, DemoFigures, print_report, write_report
from steering_pts.demo.step_reference import load_reference
from steering_pts.errors import SearchError
from steering_pts.evaluation.evaluate import EvaluationTask, ServedBy, evaluate
from steering_pts.evaluation.knowledge import decisions_of, known_of
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.evaluation.served import read_vectors
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.ledger import LedgerReader
from steering_pts.oracles.base import Oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.vectors.events import EventGroup
from steering_pts.vectors.options import VectorOptions
from steering_pts.vectors.pipeline import make_candidates

MODEL: Final = "demo"
_VALIDATION_PROBLEMS = 200
_SAMPLER = SamplerSettings(max_tokens=96)
_SEARCH = SearchSettings()
_VECTORS = VectorOptions()
_CALIBRATION = CalibrationOptions((0.25, 0.5, 1.0), ("context", "probe"), by=FORM)
_RANDOM_VECTORS = 20
_SERVERS = 2  # a step of so small a model keeps one core busy


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demonstration runs on.

    Attributes:
        folder: Where the run and the report go.
        problems: Training problems to search.
        test_problems: Held-out problems to generate on.
        seed: Seed of everything.
    """

    folder: Path
    problems: int
    test_problems: int
    seed: int


def run_demo(options: DemoOptions) -> None:
    """Runs the demonstration and writes `report.json`; an interrupted one is continued, a finished one begun anew.

    Raises:
        PtsError: Something of the run failed; the message says what.
        EngineError: The bundled model can't be run.
    """
    started = time.perf_counter()
    report_path = options.folder / "report.json"
    folder = RunFolder(options.folder)
    if report_path.exists():
        folder.clear()
        report_path.unlink()
    progress = RunProgress()
    seed = options.seed
    training = load_problems("demo:train", DataOptions(limit=options.problems, shuffle_seed=seed))
    held_out = load_problems("demo:test", DataOptions(limit=options.test_problems, shuffle_seed=seed))
    with oracle_for("math", training) as oracle:
        discover_into(folder, ModelChoice(MODEL), training, oracle, _SAMPLER, _SEARCH, seed, progress)
        with folder.read() as ledger:
            made = _make_vectors(folder, ledger, oracle, seed, progress)
            evaluation = _evaluate(folder, held_out, oracle, seed, progress)
            figures = DemoFigures(
                model=MODEL,
                problems=len(training),
                summary=ledger.summary(),
                pivots=_pivots(folder),
                calibration=made.calibration,
                left_out=made.left_out,
                probe=made.probe,
                evaluation=evaluation,
                seconds=time.perf_counter() - started,
            )
    write_page(folder, folder.report)
    write_report(report_path, figures)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    print_report(figures, lambda ids: str(tokenizer.decode(list(ids))), (report_path, folder.report))


@dataclass(frozen=True, slots=True)
class _Made:
    calibration: CalibrationResult
    left_out: tuple[str, ...]
    probe: ProbeQuality


def _make_vectors(
    folder: RunFolder, ledger: LedgerReader, oracle: Oracle, seed: int, progress: RunProgress
) -> _Made:
    """Vectors named after the planted decisions that they are for, calibrated on validation problems."""
    validation = load_problems("demo:validation", DataOptions(limit=_VALIDATION_PROBLEMS, shuffle_seed=seed))
    with rollouts(ModelChoice(MODEL), _SAMPLER) as (model, source):
        tokenizer = model.loaded.tokenizer
        names: Counter[str] = Counter()

        def name_of(group: EventGroup, _index: int) -> str:
            kinds = Counter(
                decision_kind(
                    tokenizer.decode(list(event.prefix_ids)),
                    tokenizer.decode([event.chosen_id]),
                    [tokenizer.decode([event.rejected_id])],
                )
                for event in group.events
            )
            kind = kinds.most_common(1)[0][0]
            names[kind] += 1
            return kind if names[kind] == 1 else f"{kind}-{names[kind]}"

        groups, left_out, _ = make_candidates(ledger, model.loaded, folder.path, _VECTORS, progress, name_of)
        if not groups:
            raise SearchError("no vectors: " + "; ".join(left_out))
        prompts = encode_prompts(model, validation, raw=False)
        by_id = {problem.id: problem for problem in validation}
        bench = Bench(model, source, oracle, by_id, prompts, _SAMPLER, seed, progress)
        calibration, written = calibrate_into(folder.path, bench, _CALIBRATION, validation, grid_samples=1)
        if not written:
            reasons = "; ".join(f"{group.name}: {group.reason}" for group in calibration.groups)
            raise SearchError(f"no vector helped on the validation problems: {reasons}")
        probe = measure_probe(model.loaded, [pivot_probe(ledger, model.loaded)], load_reference())
    return _Made(calibration, tuple(left_out), probe)


def _evaluate(
    folder: RunFolder, problems: Sequence[Problem], oracle: Oracle, seed: int, progress: RunProgress
) -> EvaluationReport:
    """All arms, through the client against servers in processes of their own."""
    vectors, remarks = read_vectors([folder.vectors])
    known, without = known_of(vectors, decisions_of(folder.pivots), folder.candidates)
    task = EvaluationTask(
        served=ServedBy(MODEL, servers=_SERVERS),
        dataset="demo:test",
        problems=problems,
        vectors=vectors,
        known=known,
        settings=EvaluationSettings(_SAMPLER, seed, random_vectors=_RANDOM_VECTORS, by=(FORM,)),
        folder=folder.evaluated,
        remarks=(*remarks, *without),
    )
    report = evaluate(task, oracle, progress)
    report.write(folder.evaluation)
    return report


def _pivots(folder: RunFolder) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in folder.pivots.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "kind": decision_kind(
                f"<|user|>{line['question']}<|end|><|assistant|>{line['prefix']}",
                line["token"],
                [alternative["token"] for alternative in line["alternatives"]],
            ),
            "position": line["position"],
            "token": line["token"],
            "delta": line["delta"],
            "ci": [line["low"], line["high"]],
            "p": line["p_value"],
        }
        for line in lines
    ]
