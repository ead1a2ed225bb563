"""`pts calibrate`: which method, block, strength and trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from steering_pts.calibration.options import TRIGGERS, CalibrationOptions, TriggerKindName
from steering_pts.calibration.run import calibrate_into
from steering_pts.cli.calibration_tables import print_calibration
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
from steering_pts.cli.measuring import OwnOptions, measuring
from steering_pts.cli.options import AsJson, Device, OracleOption
from steering_pts.cli.run import RunFolder
from steering_pts.data import Problem, load_problems
from steering_pts.errors import DataError
from steering_pts.oracles.registry import ORACLES
from steering_pts.progress import RunProgress

_OPTIONS = CalibrationOptions()
_GRID_SAMPLES = 2  # of half of the problems: as many completions as one of each


def calibrate(
    run: Annotated[Path, typer.Argument(help="Folder of the run, or of the results with --vectors.")],
    validation: Annotated[str, typer.Option(help="Data set on which settings are chosen and confirmed.")],
    test: Annotated[
        str | None, typer.Option(help="Data set on which what is kept is measured once, at the end.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face validation set.")] = "validation",
    test_split: Annotated[str, typer.Option(help="Split of a Hugging Face test set.")] = "test",
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    where: Where = None,
    ids: IdsFile = None,
    skip_bad_rows: SkipBadRows = False,
    limit: Annotated[int, typer.Option(help="Validation problems at most.", min=4)] = 200,
    test_limit: Annotated[int, typer.Option(help="Test problems at most.", min=2)] = 500,
    shuffle_seed: ShuffleSeed = 0,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="Strengths that compete, as multiples of the method's own; "
            f"{', '.join(f'{one:g}' for one in _OPTIONS.multiples)} if not given."
        ),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(help=f"Triggers that compete: {', '.join(TRIGGERS)}; all if not given."),
    ] = None,
    trigger_blocks: Annotated[
        str, typer.Option(help="Blocks at which probes and centroids are read: best, or all.")
    ] = _OPTIONS.trigger_blocks,
    kl_budget: Annotated[
        float, typer.Option(help="Most divergence, in nats per token, over the steps that are not steered.")
    ] = _OPTIONS.kl_budget,
    share: Annotated[
        float, typer.Option(help="Most rollouts of the search, as a share of those of the full grid.")
    ] = _OPTIONS.share,
    samples: Annotated[
        int, typer.Option(help="Completions of each problem, at most.", min=1)
    ] = _OPTIONS.samples,
    by: Annotated[
        str, typer.Option(help="Field of the data whose values must not be harmed, and are reported.")
    ] = "",
    vectors: Annotated[
        Path | None, typer.Option(help="Folder of vector files; RUN/candidates if not given.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="`demo`, a folder, or a hub id; only where RUN is no run.")
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(ORACLES)} or module:function; only where RUN is no run."),
    ] = None,
    oracle_option: OracleOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Plain prompts; only where RUN is no run.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Only where RUN is no run.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only where RUN is no run.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only where RUN is no run.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only where RUN is no run.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Only where RUN is no run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only where RUN is no run.", min=0)] = None,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="Only where RUN is no run.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an earlier calibration measured.")
    ] = False,
    full_grid: Annotated[
        bool,
        typer.Option(
            "--full-grid",
            help="Measure every setting, to tell how near the search came to the best; takes several times as long.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Choose method, block, strength and trigger of each group of vectors, and write RUN/vectors.

    Settings compete on one half of the validation problems; what the winner does is measured on the other half. A
    vector is kept when its lift there is certain. Interrupted at any moment, the same command goes on where it stopped.
    """
    options = CalibrationOptions(
        multiples=tuple(strength) if strength else _OPTIONS.multiples,
        triggers=cast("tuple[TriggerKindName, ...]", tuple(trigger or TRIGGERS)),  # checked there
        trigger_blocks=trigger_blocks,  # type: ignore[arg-type]  # checked there
        kl_budget=kl_budget,
        share=share,
        samples=samples,
        by=by,
    )
    reading = data_options(
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
    problems = load_problems(validation, reading)
    tests = [] if test is None else load_problems(test, replace(reading, split=test_split, limit=test_limit))
    own = OwnOptions(
        model=model,
        oracle=oracle,
        oracle_option=tuple(oracle_option or ()),
        raw=raw or None,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        max_tokens=max_tokens,
        seed=seed,
        dtype=dtype,
    )
    folder = RunFolder(run)
    check_apart(folder, (validation, problems), (str(test), tests))
    progress = RunProgress(quiet=as_json)
    with measuring(folder, own, device, [*problems, *tests], progress) as (bench, plain):
        result, written = calibrate_into(
            run,
            bench,
            options,
            problems,
            tests,
            candidates=vectors,
            raw=plain,
            restart=restart,
            grid_samples=_GRID_SAMPLES if full_grid else 0,
        )
    print_calibration(result, written, as_json=as_json)


def check_apart(folder: RunFolder, *sets: tuple[str, Sequence[Problem]]) -> None:
    """Whether no problem is in two of the data sets, or in one of them and in the run.

    Raises:
        DataError: Some are; all overlaps at once.
    """
    seen: list[tuple[str, set[str]]] = []
    if folder.ledger.is_file():
        with folder.read() as ledger:
            seen.append(("the run", {problem.id for problem in ledger.problems()}))
    faults = []
    for name, problems in sets:
        own = {problem.id for problem in problems}
        faults += [
            f"{name}: {len(own & others)} problems are those of {where}; use problems that it never saw"
            for where, others in seen
            if own & others
        ]
        seen.append((name, own))
    if faults:
        raise DataError("data sets that overlap", faults)
