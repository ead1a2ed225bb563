"""`pts evaluate`: what vectors do to problems that nothing was made from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from steering_pts.cli.data_options import (
    AnswerField,
    DataFormat,
    IdsFile,
    LayoutName,
    QuestionField,
    ShuffleSeed,
    SkipBadRows,
    Where,
    data_options,
)
from steering_pts.cli.options import AsJson, Device, OracleOption
from steering_pts.cli.run import RunFolder, oracle_for, oracle_of, sampler_of, setting
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.errors import DataError, EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.effects import read_neutral
from steering_pts.evaluation.evaluate import JOURNAL, VERDICTS, EvaluationTask, ServedBy
from steering_pts.evaluation.evaluate import evaluate as run_task
from steering_pts.evaluation.forcing import KnownAlternatives
from steering_pts.evaluation.journal import remove
from steering_pts.evaluation.knowledge import decisions_of, known_of
from steering_pts.evaluation.report import print_report
from steering_pts.evaluation.served import TRIGGERS, ServedVector, TriggerName, read_vectors
from steering_pts.evaluation.settings import DEFAULT_RANDOM_VECTORS, EvaluationSettings
from steering_pts.ledger import LedgerReader
from steering_pts.oracles.base import Oracle
from steering_pts.oracles.registry import ORACLES
from steering_pts.progress import RunProgress
from steering_pts.settings import SamplerSettings

Value = TypeVar("Value")
_KINDS = tuple(kind.value for kind in ArmKind if kind not in (ArmKind.UNSTEERED, ArmKind.STEERED))
_WHAT = "What is measured"
_SAMPLER = "Sampler; the run's, or else that of pts discover, if not given"


def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            help="A run, whose vectors, model, sampler and oracle are taken; or vector files, and folders of them; "
            "or both."
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(help="Problems that nothing was made from or chosen on, as for pts discover."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "test",
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    where: Where = None,
    ids: IdsFile = None,
    skip_bad_rows: SkipBadRows = False,
    limit: Annotated[int, typer.Option(help="Problems at most.", min=2)] = 500,
    shuffle_seed: ShuffleSeed = 0,
    model: Annotated[
        str | None, typer.Option(help="`demo`, a folder, or a hub id; the run's if not given.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a running server; one is started for the purpose if not given."),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(ORACLES)} or module:function; the run's, or chosen by the data, if not given."
        ),
    ] = None,
    oracle_option: OracleOption = None,
    raw: Annotated[
        bool | None, typer.Option("--raw/--chat", help="Plain prompts, or the chat template.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0.", rich_help_panel=_SAMPLER)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus; 1 is off.", rich_help_panel=_SAMPLER)] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps all.", rich_help_panel=_SAMPLER)] = None,
    min_p: Annotated[float | None, typer.Option(help="0 is off.", rich_help_panel=_SAMPLER)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest completion.", rich_help_panel=_SAMPLER)
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            help=f"When all vectors act: {', '.join(TRIGGERS)}. What each file recommends, or else its contexts, if "
            "not given.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Multiplies the calibrated strengths.", rich_help_panel=_WHAT)
    ] = 1.0,
    samples: Annotated[
        int,
        typer.Option(
            help="Completions of each problem: unsteered, steered, better token forced.",
            min=1,
            rich_help_panel=_WHAT,
        ),
    ] = 4,
    control_samples: Annotated[
        int, typer.Option(help="Completions of each problem in other arms.", min=1, rich_help_panel=_WHAT)
    ] = 1,
    random_vectors: Annotated[
        int,
        typer.Option(help="Random versions of the vectors, an arm for each.", min=0, rich_help_panel=_WHAT),
    ] = DEFAULT_RANDOM_VECTORS,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Besides unsteered and steered: {', '.join(_KINDS)}; repeatable; all if not given.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Measure every vector alone as well.", rich_help_panel=_WHAT)
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Field of the problems that tells their kinds apart; repeatable.", rich_help_panel=_WHAT
        ),
    ] = None,
    kl: Annotated[
        bool,
        typer.Option(
            "--kl/--no-kl", help="Load the model here and measure divergence.", rich_help_panel=_WHAT
        ),
    ] = True,
    neutral: Annotated[
        Path | None,
        typer.Option(help="A text on which divergence is measured as well.", rich_help_panel=_WHAT),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything; the run's, or 0, if not given.", min=0)
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16; the run's if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; the run, or runs/evaluation, if not given.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier command has measured in that folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure vectors on held-out problems, through the client against a server, beside every control.

    Unsteered and steered; strength 0, the other way, random directions, as many other steps, every step, and the better
    token forced. Success with intervals over problems, permutation tests, and side effects. Writes evaluation.json and
    plots. Interrupted at any moment, the same command goes on where it stopped.
    """
    options = data_options(
        format=format,
        layout=layout,
        question_field=question_field,
        answer_field=answer_field,
        split=split,
        where=where,
        ids=ids,
        limit=limit,
        shuffle_seed=shuffle_seed,
        skip_bad_rows=skip_bad_rows,
    )
    kinds = _kinds(arm)
    run, paths = _run_and_paths(targets)
    with ExitStack() as open_things:
        ledger = None if run is None else open_things.enter_context(run.read())
        served = _served(ledger, model, endpoint, device, dtype)
        settings = EvaluationSettings(
            sampler=_sampler(ledger, temperature, top_p, top_k, min_p, max_tokens),
            seed=_first(seed, None if ledger is None else setting(ledger, "seed", int), 0),
            raw=_first(raw, None if ledger is None else setting(ledger, "raw", bool), False),
            samples=samples,
            control_samples=min(samples, control_samples),
            random_vectors=random_vectors,
            kinds=kinds,
            each=each,
            by=tuple(dict.fromkeys(by or ())),
        )
        vectors, remarks = read_vectors(paths, _trigger(trigger), strength)
        source = _dataset(dataset, served)
        problems = _problems(source, options, ledger)
        judge = open_things.enter_context(_oracle(oracle, oracle_option or (), ledger, problems))
        known: list[KnownAlternatives] = []
        if ArmKind.FORCED_ALTERNATIVE in kinds:
            known, without = _known(run, vectors)
            remarks += without
        place = _out(out, run)
        folder = place / "evaluation"
        if fresh:
            remove(folder / JOURNAL)
            remove(folder / VERDICTS)
        report = run_task(
            EvaluationTask(
                served=served,
                dataset=source,
                problems=problems,
                vectors=vectors,
                known=known,
                settings=settings,
                folder=folder,
                divergence=kl,
                neutral=None if neutral is None else read_neutral(neutral),
                remarks=remarks,
            ),
            judge,
            RunProgress(quiet=as_json),
        )
    report.write(place / "evaluation.json")
    # Imported here: it takes a second, which a wrong option should not cost.
    from steering_pts.evaluation.plots import write_plots  # noqa: PLC0415

    plots = write_plots(report.figures, folder)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
    else:
        print_report(report, [place / "evaluation.json", *plots])


def _kinds(asked: Sequence[str] | None) -> frozenset[ArmKind]:
    if unknown := sorted(set(asked or ()) - set(_KINDS)):
        raise EvaluationError(f"unknown arm {unknown[0]!r}; expected {', '.join(_KINDS)}")
    chosen = _KINDS if asked is None else asked
    return frozenset({ArmKind.UNSTEERED, ArmKind.STEERED, *map(ArmKind, chosen)})


def _trigger(asked: str | None) -> TriggerName | None:
    if asked is None:
        return None
    found = next((name for name in TRIGGERS if name == asked), None)
    if found is None:
        raise EvaluationError(f"unknown trigger {asked!r}; expected {', '.join(TRIGGERS)}")
    return found


def _run_and_paths(targets: Sequence[Path]) -> tuple[RunFolder | None, list[Path]]:
    """The run among the targets, if one is, and the vector files and folders to evaluate."""
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


def _served(
    ledger: LedgerReader | None, model: str | None, endpoint: str | None, device: str, dtype: str | None
) -> ServedBy:
    if ledger is not None:
        model = model or setting(ledger, "model", str)
        dtype = dtype or setting(ledger, "dtype", str)
    if model is None and endpoint is None:
        raise EvaluationError("name the --model to serve, the --endpoint of a running server, or a run")
    return ServedBy(model, endpoint, device, dtype or "auto")


def _sampler(
    ledger: LedgerReader | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    max_tokens: int | None,
) -> SamplerSettings:
    base = SamplerSettings() if ledger is None else sampler_of(ledger)
    return SamplerSettings(
        temperature=_first(temperature, base.temperature),
        top_p=_first(top_p, base.top_p),
        top_k=_first(top_k, base.top_k),
        max_tokens=_first(max_tokens, base.max_tokens),
        min_p=_first(min_p, base.min_p),
    )


def _dataset(dataset: str | None, served: ServedBy) -> str:
    if dataset is not None:
        return dataset
    if served.model == "demo":
        return "demo:test"
    raise EvaluationError("name the --dataset whose problems are to be solved")


def _problems(source: str, options: DataOptions, ledger: LedgerReader | None) -> list[Problem]:
    problems = load_problems(source, options)
    if ledger is not None and (overlap := {p.id for p in problems} & {p.id for p in ledger.problems()}):
        raise DataError(
            source, [f"{len(overlap)} problems are those of the run; use problems that it never saw"]
        )
    return problems


def _oracle(
    name: str | None, options: Sequence[str], ledger: LedgerReader | None, problems: Sequence[Problem]
) -> AbstractContextManager[Oracle]:
    if ledger is not None and name is None and not options:
        return oracle_of(ledger, problems)
    return oracle_for(name, problems, options)


def _known(
    run: RunFolder | None, vectors: Sequence[ServedVector]
) -> tuple[list[KnownAlternatives], list[str]]:
    if run is None:
        return [], ["forced_alternative: left out, since no run was given that knows which token is better"]
    return known_of(vectors, decisions_of(run.require_pivots()), run.path / "candidates")


def _out(out: Path | None, run: RunFolder | None) -> Path:
    if out is not None:
        return out
    return Path("runs/evaluation") if run is None else run.path


def _first(*values: Value | None) -> Value:
    """The first that was given."""
    return next(value for value in values if value is not None)
