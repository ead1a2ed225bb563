"""The demonstration: the whole way on the bundled model, from pivots to steered answers, with its measured effect."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from steering_client import Client
from steering_engine.alias import resolve_model
from steering_engine.vectors.file import encode_vector, load_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.cli.run import ModelChoice, RunFolder, discover_into, oracle_for, rollouts
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.demo.kinds import decision_kind
from steering_pts.demo.report import DemoFigures, print_report, write_report
from steering_pts.errors import SearchError
from steering_pts.evaluation import Arm, ArmResult, Evaluation
from steering_pts.ledger import LedgerReader
from steering_pts.oracles.base import Oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.server_process import server_process
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.vectors.events import EventGroup
from steering_pts.vectors.options import VectorOptions
from steering_pts.vectors.pipeline import MadeVector, VectorReport, make_vectors
from steering_pts.vectors.selection import Validation
from steering_spec import ContextTrigger, SteeringRule, SteeringSpec

MODEL = "demo"
_RANDOM_VECTORS = 5
_VALIDATION_PROBLEMS = 200
_SAMPLER = SamplerSettings(max_tokens=96)
_SEARCH = SearchSettings()


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
    choice = ModelChoice(MODEL)
    training = load_problems("demo:train", DataOptions(limit=options.problems, shuffle_seed=options.seed))
    held_out = load_problems("demo:test", DataOptions(limit=options.test_problems, shuffle_seed=options.seed))
    with oracle_for("math", training) as oracle:
        discover_into(folder, choice, training, oracle, _SAMPLER, _SEARCH, options.seed, progress)
        with folder.read() as ledger:
            made = _vectors(folder, ledger, choice, oracle, options.seed, progress)
            if not made.vectors:
                raise SearchError("no vector helped on the validation problems: " + "; ".join(made.left_out))
            evaluation, arms = _evaluate(folder, made.vectors, held_out, oracle, options.seed, progress)
            unsteered, steered = arms[0], arms[1]
            figures = DemoFigures(
                model=MODEL,
                problems=len(training),
                summary=ledger.summary(),
                pivots=_pivots(folder),
                vectors=made.vectors,
                unsteered=unsteered,
                steered=steered,
                every_step=arms[2],
                random=arms[3:],
                lift=evaluation.lift(unsteered, steered),
                seconds=time.perf_counter() - started,
            )
    write_report(report_path, figures)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    print_report(figures, held_out, lambda ids: str(tokenizer.decode(list(ids))), made.left_out, report_path)


def _vectors(
    folder: RunFolder,
    ledger: LedgerReader,
    choice: ModelChoice,
    oracle: Oracle,
    seed: int,
    progress: RunProgress,
) -> VectorReport:
    """Vectors named after the planted decisions that they are for, chosen on validation problems."""
    validation = load_problems("demo:validation", DataOptions(limit=_VALIDATION_PROBLEMS, shuffle_seed=seed))
    with rollouts(choice, _SAMPLER) as (model, source):
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

        prompts = encode_prompts(model, validation, raw=False)
        measure = Validation(model, source, oracle, validation, prompts, _SAMPLER, seed, progress)
        options = VectorOptions(methods=("paired_difference", "optimised"))
        return make_vectors(ledger, measure, folder.vectors, options, progress, name_of)


def _evaluate(
    folder: RunFolder,
    vectors: Sequence[MadeVector],
    problems: Sequence[Problem],
    oracle: Oracle,
    seed: int,
    progress: RunProgress,
) -> tuple[Evaluation, list[ArmResult]]:
    """All arms, through the client against a server in a process of its own."""
    with server_process(MODEL, folder.vectors) as target:
        random_names = _load_random_vectors(target, vectors, seed)
        evaluation = Evaluation(target, problems, oracle, _SAMPLER, seed, False, progress)
        names = [vector.name for vector in vectors]
        arms = [
            Arm("unsteered", None),
            Arm("steered", _at_pivots(names)),
            Arm("every_step", SteeringSpec(tuple(SteeringRule(name) for name in names))),
            *(Arm(f"random {index + 1}", _at_pivots(of_run)) for index, of_run in enumerate(random_names)),
        ]
        return evaluation, evaluation.measure(arms)


def _at_pivots(names: Sequence[str]) -> SteeringSpec:
    return SteeringSpec(tuple(SteeringRule(name, trigger=ContextTrigger()) for name in names))


def _load_random_vectors(target: str, vectors: Sequence[MadeVector], seed: int) -> list[list[str]]:
    """For each vector, random directions with its blocks, strengths and contexts, loaded into the server."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with Client(target) as client:
        for number in range(_RANDOM_VECTORS):
            names = []
            for made in vectors:
                name = f"random-{number + 1}-{made.name}"
                client.load_vector(
                    name, file=encode_vector(_randomised(load_vector(made.path), name, generator))
                )
                names.append(name)
            rows.append(names)
    return rows


def _randomised(vector: SteeringVector, name: str, generator: torch.Generator) -> SteeringVector:
    directions = {}
    for block, direction in vector.directions.items():
        random = torch.randn(len(direction), generator=generator)
        directions[block] = random / random.norm()
    update: dict[str, Any] = {
        "name": name,
        "method": "random",
        "description": "random direction",
        "held_out_lift": None,
        "split_half_cosine": {},
    }
    return dataclasses.replace(
        vector, directions=directions, metadata=vector.metadata.model_copy(update=update)
    )


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
