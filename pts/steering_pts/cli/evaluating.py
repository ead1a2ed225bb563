"""What `pts evaluate` works on, made of what it is told and of the run that it is pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeVar

from steering_pts.calibration.files import CalibrationFiles
from steering_pts.calibration.writing import calibrated_on
from steering_pts.cli.run import RunFolder, sampler_of, setting
from steering_pts.cli.running import oracle_for, oracle_of
from steering_pts.credentials import Credentials
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.errors import DataError, EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.evaluate import ServedBy
from steering_pts.evaluation.forcing import KnownAlternatives
from steering_pts.evaluation.knowledge import decisions_of, known_of
from steering_pts.evaluation.served import TRIGGERS, ServedVector, TriggerName
from steering_pts.ledger import LedgerReader
from steering_pts.oracles.base import Oracle
from steering_pts.settings import SamplerSettings

Value = TypeVar("Value")
CONTROLS: Final = tuple(kind.value for kind in ArmKind if kind not in (ArmKind.UNSTEERED, ArmKind.STEERED))
"""The arms that may be left out."""


def arm_kinds(asked: Sequence[str] | None) -> frozenset[ArmKind]:
    """The kinds of arms to measure; all where none are named.

    Raises:
        EvaluationError: There is no such kind.
    """
    if unknown := sorted(set(asked or ()) - set(CONTROLS)):
        raise EvaluationError(f"unknown arm {unknown[0]!r}; expected {', '.join(CONTROLS)}")
    chosen = CONTROLS if asked is None else asked
    return frozenset({ArmKind.UNSTEERED, ArmKind.STEERED, *map(ArmKind, chosen)})


def trigger_name(asked: str | None) -> TriggerName | None:
    """The trigger of that name.

    Raises:
        EvaluationError: There is none.
    """
    if asked is None:
        return None
    found = next((name for name in TRIGGERS if name == asked), None)
    if found is None:
        raise EvaluationError(f"unknown trigger {asked!r}; expected {', '.join(TRIGGERS)}")
    return found


def run_and_paths(targets: Sequence[Path]) -> tuple[RunFolder | None, list[Path]]:
    """The run among the targets, if one is, and the vector files and folders to evaluate.

    Raises:
        EvaluationError: Several are runs, or the run has no vectors and no others are named.
    """
    runs = [RunFolder(path) for path in targets if RunFolder(path).ledger.is_file()]
    if len(runs) > 1:
        raise EvaluationError(f"{runs[0].path} and {runs[1].path} are both runs; evaluate one at a time")
    run = runs[0] if runs else None
    paths = [path for path in targets if run is None or path != run.path]
    if run is not None and not paths:
        if not any(run.vectors.glob("*.safetensors")):
            raise EvaluationError(f"{run.path}: the run has no vectors; make some with `pts vectors`")
        paths = [run.vectors]
    return run, paths


def served_by(
    ledger: LedgerReader | None,
    model: str | None,
    endpoints: Sequence[str],
    device: str,
    dtype: str | None,
    servers: int,
    credentials: Credentials,
) -> ServedBy:
    """Where completions come from; model and dtype are the run's where they are not given.

    Raises:
        EvaluationError: Neither a model nor an endpoint is known.
    """
    if ledger is not None:
        model = model or setting(ledger, "model", str)
        dtype = dtype or setting(ledger, "dtype", str)
    if model is None and not endpoints:
        raise EvaluationError("name the --model to serve, the --endpoint of a running server, or a run")
    return ServedBy(model, tuple(dict.fromkeys(endpoints)), device, dtype or "auto", servers, credentials)


def sampler_for(
    ledger: LedgerReader | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    max_tokens: int | None,
) -> SamplerSettings:
    """The sampler: what is given, else the run's, else the defaults."""
    base = SamplerSettings() if ledger is None else sampler_of(ledger)
    return SamplerSettings(
        temperature=first_given(temperature, base.temperature),
        top_p=first_given(top_p, base.top_p),
        top_k=first_given(top_k, base.top_k),
        max_tokens=first_given(max_tokens, base.max_tokens),
        min_p=first_given(min_p, base.min_p),
    )


def dataset_for(dataset: str | None, served: ServedBy) -> str:
    """The data set; the bundled model has its own.

    Raises:
        EvaluationError: None is named.
    """
    if dataset is not None:
        return dataset
    if served.model == "demo":
        return "demo:test"
    raise EvaluationError("name the --dataset whose problems are to be solved")


def held_out_problems(
    source: str, options: DataOptions, run: RunFolder | None, ledger: LedgerReader | None
) -> list[Problem]:
    """The problems.

    Raises:
        DataError: They can't be read, or some are those of the run, or of its calibration.
    """
    problems = load_problems(source, options)
    ids = {problem.id for problem in problems}
    faults = []
    if ledger is not None and (overlap := ids & {problem.id for problem in ledger.problems()}):
        faults.append(f"{len(overlap)} problems are those of the run; use problems that it never saw")
    if run is not None and (overlap := ids & calibrated_on(CalibrationFiles(run.path).result)):
        faults.append(
            f"{len(overlap)} problems are those that its calibration chose and confirmed on; use others"
        )
    if faults:
        raise DataError(source, faults)
    return problems


def judging_oracle(
    name: str | None, options: Sequence[str], ledger: LedgerReader | None, problems: Sequence[Problem]
) -> AbstractContextManager[Oracle]:
    """The oracle: the one that is named, else the run's, else the one that fits the data; closed at the end."""
    if ledger is not None and name is None and not options:
        return oracle_of(ledger, problems)
    return oracle_for(name, problems, options)


def known_alternatives_of(
    run: RunFolder | None, vectors: Sequence[ServedVector]
) -> tuple[list[KnownAlternatives], list[str]]:
    """The better tokens that the run knows of, and a sentence for what is not known."""
    if run is None:
        return [], ["forced_alternative: left out, since no run was given that knows which token is better"]
    return known_of(vectors, decisions_of(run.require_pivots()), run.path / "candidates")


def out_folder(out: Path | None, run: RunFolder | None) -> Path:
    """Where the results go."""
    if out is not None:
        return out
    return Path("runs/evaluation") if run is None else run.path


def first_given(*values: Value | None) -> Value:
    """The first that was given."""
    return next(value for value in values if value is not None)
