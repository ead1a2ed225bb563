"""`pts vectors`: from pivots to steering vectors."""

from __future__ import annotations

from typing import Annotated

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
from steering_pts.cli.options import AsJson, Device, Run
from steering_pts.cli.run import ModelChoice, RunFolder, oracle_of, rollouts, sampler_of, setting
from steering_pts.cli.tables import print_vectors
from steering_pts.data import load_problems
from steering_pts.errors import DataError, SearchError
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.vectors.building import METHODS
from steering_pts.vectors.pipeline import VectorOptions, make_vectors
from steering_pts.vectors.selection import Validation


def vectors(
    run: Run,
    validation: Annotated[
        str | None, typer.Option(help="Data set on which method, block and strength are chosen.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "validation",
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    where: Where = None,
    ids: IdsFile = None,
    skip_bad_rows: SkipBadRows = False,
    limit: Annotated[int, typer.Option(help="Validation problems at most.", min=2)] = 200,
    shuffle_seed: ShuffleSeed = 0,
    method: Annotated[
        list[str] | None, typer.Option(help="paired_difference, optimised; both if not given.")
    ] = None,
    block: Annotated[list[int] | None, typer.Option(help="Blocks that compete; chosen if not given.")] = None,
    min_events: Annotated[int, typer.Option(help="Alike pivots that a vector needs.", min=1)] = 4,
    licence: Annotated[str, typer.Option(help="Licence written into the files.")] = "Apache-2.0",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Record the residual stream at a run's pivots and write steering vectors to RUN/vectors."""
    options = _vector_options(method, block, min_events, licence)
    validation_options = data_options(
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
    folder = RunFolder(run)
    with folder.read() as ledger:
        folder.require_pivots()
        if (unit := setting(ledger, "search.unit", str)) != "token":
            raise SearchError(
                f"{run}: vectors act at a token; this run searched for a pivotal {unit}. "
                "Make one with `pts discover --unit token`"
            )
        problems = load_problems(validation, validation_options) if validation is not None else []
        if overlap := {p.id for p in problems} & {p.id for p in ledger.problems()}:
            raise DataError(
                str(validation),
                [f"{len(overlap)} problems are those of the run; use problems that it never saw"],
            )
        if len(problems) == 1:
            raise DataError(
                str(validation), ["it holds 1 problem; choosing needs at least 2, better 100 or more"]
            )
        choice = ModelChoice(setting(ledger, "model", str), device, setting(ledger, "dtype", str))
        sampler = sampler_of(ledger)
        progress = RunProgress(quiet=as_json)
        with (
            oracle_of(ledger, problems) as judge,
            rollouts(choice, sampler) as (model, source),
        ):
            if bad := [b for b in options.blocks if not 0 <= b < model.loaded.block_count]:
                raise SearchError(
                    f"block {bad[0]} does not exist; the model has blocks 0 to {model.loaded.block_count - 1}"
                )
            prompts = encode_prompts(model, problems, raw=setting(ledger, "raw", bool))
            seed = setting(ledger, "seed", int)
            measure = Validation(model, source, judge, problems, prompts, sampler, seed, progress)
            report = make_vectors(ledger, measure, folder.vectors, options, progress)
    print_vectors(report, as_json=as_json)


def _vector_options(
    methods: list[str] | None, blocks: list[int] | None, min_events: int, licence: str
) -> VectorOptions:
    if unknown := sorted(set(methods or ()) - set(METHODS)):
        raise SearchError(f"unknown method {unknown[0]!r}; expected {' or '.join(METHODS)}")
    return VectorOptions(min_events, tuple(methods or METHODS), tuple(sorted(set(blocks or ()))), licence)
