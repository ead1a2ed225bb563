"""`pts vectors`: from pivots to steering vectors."""

from __future__ import annotations

import json
import sys
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.text import Text

from steering_pts.calibration.calibrating import check_problems
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.run import calibrate_into
from steering_pts.cli.calibrate import check_apart
from steering_pts.cli.calibration_tables import calibration_values, print_calibration
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
from steering_pts.cli.options import AsJson, Device, Run
from steering_pts.cli.run import RunFolder, sampler_of, setting
from steering_pts.cli.running import ModelChoice, rollouts
from steering_pts.cli.vector_tables import candidate_values, print_candidates, print_vectors
from steering_pts.data import load_problems
from steering_pts.errors import SearchError
from steering_pts.progress import RunProgress
from steering_pts.vectors.grouping import GroupBy
from steering_pts.vectors.methods import METHODS
from steering_pts.vectors.options import VectorOptions
from steering_pts.vectors.pipeline import VectorReport, make_candidates, make_vectors
from steering_pts.vectors.reading import MEMORY_BYTES
from steering_pts.vectors.recording import RecordingOptions


def vectors(
    run: Run,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Data set on which method, block, strength and trigger are chosen, as pts calibrate does."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "validation",
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    where: Where = None,
    ids: IdsFile = None,
    skip_bad_rows: SkipBadRows = False,
    limit: Annotated[int, typer.Option(help="Validation problems at most.", min=4)] = 200,
    shuffle_seed: ShuffleSeed = 0,
    by: Annotated[
        str,
        typer.Option(help="Field of the validation set whose values must not be harmed, and are reported."),
    ] = "",
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; all if not given. Repeatable.")
    ] = None,
    block: Annotated[
        list[int] | None,
        typer.Option(help="A block that competes; spread over the model if not given. Repeatable."),
    ] = None,
    group_by: Annotated[
        str, typer.Option(help="clusters: decisions with like states; tokens: between the same two tokens.")
    ] = "clusters",
    min_events: Annotated[int, typer.Option(help="Alike pivots that a vector needs.", min=1)] = 4,
    licence: Annotated[str, typer.Option(help="Licence written into the files.")] = "Apache-2.0",
    record_dtype: Annotated[
        str, typer.Option(help="What recorded states are stored as: float32, float16 or bfloat16.")
    ] = "float32",
    record_memory: Annotated[
        int, typer.Option(help="Memory in MiB that a forward of the recording may take.", min=1)
    ] = MEMORY_BYTES >> 20,
    remote: Annotated[
        bool, typer.Option("--remote", help="Record at NDIF, for which nnsight needs a key.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Record a run's pivots, make candidate vectors in RUN/candidates, and choose some of them for RUN/vectors."""
    options = VectorOptions(
        min_events=min_events,
        methods=tuple(dict.fromkeys(method or METHODS)),
        blocks=tuple(block or ()),
        licence=licence,
        group_by=cast("GroupBy", group_by),  # checked there
        recording=RecordingOptions(record_dtype, record_memory << 20, remote),
    )
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
    progress = RunProgress(quiet=as_json)
    with folder.read() as ledger:
        folder.require_pivots()
        if (unit := setting(ledger, "search.unit", str)) != "token":
            raise SearchError(
                f"{run}: vectors act at a token; this run searched for a pivotal {unit}. "
                "Make one with `pts discover --unit token`"
            )
        if validation is None:
            choice = ModelChoice(setting(ledger, "model", str), device, setting(ledger, "dtype", str))
            with rollouts(choice, sampler_of(ledger)) as (model, _):
                report = make_vectors(ledger, model.loaded, folder.vectors, options, progress)
            print_vectors(report, as_json=as_json)
            return
        problems = load_problems(validation, validation_options)
        check_apart(folder, (validation, problems))
        calibration = CalibrationOptions(triggers=("context", "probe", "similarity"), by=by)
        check_problems(problems, problems, by)
        with measuring(folder, OwnOptions(), device, problems, progress) as (bench, raw):
            groups, left_out, _ = make_candidates(ledger, bench.model.loaded, run, options, progress)
            if not groups:
                print_vectors(VectorReport((), tuple(left_out)), as_json=as_json)
                return
            result, written = calibrate_into(run, bench, calibration, problems, raw=raw)
    if as_json:
        values = {
            "candidates": candidate_values(groups),
            "left_out": left_out,
            "calibration": calibration_values(result, written),
        }
        sys.stdout.write(json.dumps(values) + "\n")
        return
    print_candidates(groups)
    for sentence in left_out:
        Console().print(Text(f"left out: {sentence}"))
    print_calibration(result, written, as_json=False)
