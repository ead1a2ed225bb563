"""`pts evaluate`: what vectors do to problems that nothing was made from."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
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
from steering_pts.cli.endpoint_options import TlsCa, TlsCert, TlsKey, TlsServerName, TokenFile, UseTls
from steering_pts.cli.evaluating import (
    CONTROLS,
    arm_kinds,
    dataset_for,
    first_given,
    held_out_problems,
    judging_oracle,
    known_alternatives_of,
    out_folder,
    run_and_paths,
    sampler_for,
    served_by,
    trigger_name,
)
from steering_pts.cli.options import AsJson, Device, OracleOption
from steering_pts.cli.run import setting
from steering_pts.credentials import CredentialFiles
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.effects import read_neutral
from steering_pts.evaluation.evaluate import JOURNAL, VERDICTS, EvaluationTask
from steering_pts.evaluation.evaluate import evaluate as run_task
from steering_pts.evaluation.forcing import KnownAlternatives
from steering_pts.evaluation.journal import remove
from steering_pts.evaluation.served import TRIGGERS, read_vectors
from steering_pts.evaluation.settings import DEFAULT_RANDOM_VECTORS, EvaluationSettings
from steering_pts.evaluation.table import print_report
from steering_pts.oracles.registry import ORACLES
from steering_pts.progress import RunProgress

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
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a running server; repeat it to share the work. One is started if not given."
        ),
    ] = None,
    tls: UseTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = "",
    token_file: TokenFile = None,
    servers: Annotated[
        int, typer.Option(help="Servers to start, each with its share of the cores.", min=1, max=16)
    ] = 1,
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
            help=f"Besides unsteered and steered: {', '.join(CONTROLS)}; repeatable; all if not given.",
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
    if neutral is not None and not kl:
        raise EvaluationError("--neutral measures divergence, which --no-kl leaves out; give one of them")
    credentials = CredentialFiles(tls, tls_ca, tls_cert, tls_key, tls_server_name, token_file).read(
        len(endpoint or ())
    )
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
    kinds = arm_kinds(arm)
    run, paths = run_and_paths(targets)
    with ExitStack() as open_things:
        ledger = None if run is None else open_things.enter_context(run.read())
        served = served_by(ledger, model, endpoint or (), device, dtype, servers, credentials)
        settings = EvaluationSettings(
            sampler=sampler_for(ledger, temperature, top_p, top_k, min_p, max_tokens),
            seed=first_given(seed, None if ledger is None else setting(ledger, "seed", int), 0),
            raw=first_given(raw, None if ledger is None else setting(ledger, "raw", bool), False),
            samples=samples,
            control_samples=min(samples, control_samples),
            random_vectors=random_vectors,
            kinds=kinds,
            each=each,
            by=tuple(dict.fromkeys(by or ())),
        )
        text = None if neutral is None else read_neutral(neutral)
        vectors, remarks = read_vectors(paths, trigger_name(trigger), strength)
        source = dataset_for(dataset, served)
        problems = held_out_problems(source, options, run, ledger)
        judge = open_things.enter_context(judging_oracle(oracle, oracle_option or (), ledger, problems))
        known: list[KnownAlternatives] = []
        if ArmKind.FORCED_ALTERNATIVE in kinds:
            known, without = known_alternatives_of(run, vectors)
            remarks += without
        place = out_folder(out, run)
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
                neutral=text,
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
