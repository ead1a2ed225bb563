"""For tests of evaluations: vectors for the tiny model whose completions end by themselves, and tasks on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steering_engine.loading import LoadedModel
from steering_pts.evaluation.evaluate import EvaluationTask, ServedBy, evaluate
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.evaluation.served import read_vectors
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.oracles.registry import make_oracle
from steering_pts.progress import RunProgress
from tests.support.pts import ORACLE, SAMPLER, make_problems
from tests.support.vectors import save_random_vector

# The model draws any byte, and ids up to 100 end a completion: these contexts come up in about one step in three.
CONTEXTS = [(token,) for token in range(101, 180)]


def save_vectors(folder: Path, loaded: LoadedModel) -> list[Path]:
    """`pivot` acts at contexts and has a probe; `calm` has nothing that says when."""
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(loaded.hidden_size, generator=generator)
    return [
        save_random_vector(
            folder,
            loaded,
            "pivot",
            [1],
            seed=3,
            strength=20.0,
            contexts=CONTEXTS,
            probes={0: (probe, 0.0)},
            probe_threshold={0: 0.5},
        ),
        save_random_vector(folder, loaded, "calm", [0, 2], seed=4, strength=2.0),
    ]


def task(served: ServedBy, vectors: Sequence[Path], folder: Path, **options: Any) -> EvaluationTask:
    """An evaluation of twelve problems; `options` are of the settings, the vectors or the task itself."""
    of_task = {name: options.pop(name) for name in ("known", "divergence", "neutral") if name in options}
    found, remarks = read_vectors(vectors, options.pop("trigger", None), options.pop("strength", 1.0))
    settings = EvaluationSettings(**{"sampler": SAMPLER, "samples": 2, "random_vectors": 3, **options})
    return EvaluationTask(
        served=served,
        dataset="problems",
        problems=make_problems(12),
        vectors=found,
        settings=settings,
        folder=folder,
        remarks=remarks,
        **{"known": (), "divergence": False, **of_task},
    )


def run(one: EvaluationTask) -> EvaluationReport:
    """The report of a task."""
    with make_oracle(ORACLE) as oracle:
        return evaluate(one, oracle, RunProgress(quiet=True))
