"""The commands of `pts`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from steering_pts.cli import search_options as how
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
from steering_pts.cli.export import export
from steering_pts.cli.grade import grade
from steering_pts.cli.run import (
    ModelChoice,
    RunFolder,
    discover_into,
    oracle_for,
    oracle_of,
    rollouts,
    sampler_of,
    setting,
)
from steering_pts.cli.tables import print_pivots, print_summary, print_vectors
from steering_pts.data import load_problems
from steering_pts.errors import DataError, LedgerError, SearchError
from steering_pts.oracles.registry import ORACLES
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.vectors.building import METHODS
from steering_pts.vectors.pipeline import VectorOptions, make_vectors
from steering_pts.vectors.selection import Validation

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Find the pivotal tokens of a language model and turn them into steering vectors.",
)

app.command()(grade)

Run = Annotated[Path, typer.Argument(help="Folder of the run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object.")]
OracleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the oracle; repeatable."),
]

_SAMPLER = SamplerSettings()


@app.command()
def discover(
    run: Run,
    model: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")],
    dataset: Annotated[
        str,
        typer.Option(
            help="A .jsonl, .json, .csv or .parquet file, a folder, a Hugging Face data set id, or demo:train."
        ),
    ],
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    where: Where = None,
    ids: IdsFile = None,
    skip_bad_rows: SkipBadRows = False,
    limit: Annotated[int | None, typer.Option(help="Use at most this many problems.", min=1)] = None,
    shuffle_seed: ShuffleSeed = None,
    oracle: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(ORACLES)} or module:function; chosen by the data if not given."),
    ] = None,
    oracle_option: OracleOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Plain prompts: do not apply the chat template.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="Sampler whose pivots are looked for.")
    ] = _SAMPLER.temperature,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampler; 1 is off.")] = _SAMPLER.top_p,
    top_k: Annotated[int, typer.Option(help="Top-k of the sampler; 0 keeps all.")] = _SAMPLER.top_k,
    max_tokens: Annotated[
        int, typer.Option(help="Longest completion; longer ones are censored.")
    ] = _SAMPLER.max_tokens,
    unit: how.UnitOption = how.DEFAULT.unit,
    tau: how.Tau = how.DEFAULT.tau,
    delta0: how.Delta0 = how.DEFAULT.delta0,
    fdr: how.Fdr = how.DEFAULT.fdr,
    budget: how.Budget = how.DEFAULT.budget,
    base_rollouts: how.BaseRollouts = how.DEFAULT.base_rollouts,
    completions_per_problem: how.CompletionsPerProblem = how.DEFAULT.completions_per_problem,
    low: how.Low = how.DEFAULT.low,
    high: how.High = how.DEFAULT.high,
    explore_share: how.ExploreShare = how.DEFAULT.explore_share,
    explore_first: how.ExploreFirst = how.DEFAULT.explore_first,
    explore_batch: how.ExploreBatch = how.DEFAULT.explore_batch,
    explore_widest: how.ExploreWidest = how.DEFAULT.explore_widest,
    ambiguity: how.Ambiguity = how.DEFAULT.ambiguity,
    rho: how.Rho = how.DEFAULT.rho,
    sd: how.Sd = how.DEFAULT.sd,
    learn_prior: how.LearnPrior = how.DEFAULT.learn_prior,
    prior_weight: how.PriorWeight = how.DEFAULT.prior_weight,
    nominate: how.Nominate = how.DEFAULT.nominate,
    power: how.Power = how.DEFAULT.power,
    confirm_least: how.ConfirmLeast = how.DEFAULT.confirm_least,
    confirm_most: how.ConfirmMost = how.DEFAULT.confirm_most,
    seed: Annotated[int, typer.Option(help="Seed of the run.", min=0)] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Find pivotal tokens and keep everything in RUN.

    Interrupted at any moment, the same command goes on where it stopped. The guarantee is on effects below --delta0:
    at most a share --fdr of the reported tokens has a smaller effect.
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
    problems = load_problems(dataset, options)
    sampler = SamplerSettings(temperature, top_p, top_k, max_tokens)
    search = SearchSettings(
        unit=unit,  # type: ignore[arg-type]  # checked there
        tau=tau,
        delta0=delta0,
        fdr=fdr,
        budget=budget,
        base_rollouts=base_rollouts,
        completions_per_problem=completions_per_problem,
        low=low,
        high=high,
        explore_share=explore_share,
        explore_first=explore_first,
        explore_batch=explore_batch,
        explore_widest=explore_widest,
        ambiguity=ambiguity,
        rho=rho,
        sd=sd,
        learn_prior=learn_prior,
        prior_weight=prior_weight,
        nominate=nominate,
        power=power,
        confirm_least=confirm_least,
        confirm_most=confirm_most,
    )
    folder = RunFolder(run)
    with oracle_for(oracle, problems, oracle_option or ()) as judge:
        progress = RunProgress(quiet=as_json)
        choice = ModelChoice(model, device, dtype)
        discover_into(folder, choice, problems, judge, sampler, search, seed, progress, raw=raw)
    with folder.read() as ledger:
        print_summary(run, ledger, as_json=as_json)


@app.command()
def status(run: Run, as_json: AsJson = False) -> None:
    """Show what a run has done and what it has cost."""
    with RunFolder(run).read() as ledger:
        print_summary(run, ledger, as_json=as_json)


@app.command()
def show(
    run: Run,
    limit: Annotated[int, typer.Option(help="Show at most this many pivots.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each pivot.")] = False,
) -> None:
    """Show the pivots of a run, each in its context."""
    folder = RunFolder(run)
    with folder.read():
        if not folder.pivots.is_file():
            raise LedgerError(f"{run}: the run is not finished; the command that began it goes on")
    lines = folder.pivots.read_text(encoding="utf-8").splitlines()
    if as_json:
        sys.stdout.write("".join(f"{line}\n" for line in lines[:limit]))
        return
    print_pivots([json.loads(line) for line in lines], limit)


app.command()(export)


@app.command()
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
        if not folder.pivots.is_file():
            raise LedgerError(f"{run}: the run is not finished; the command that began it goes on")
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


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    problems: Annotated[int, typer.Option(help="Training problems to search.", min=4)] = 32,
    test_problems: Annotated[int, typer.Option(help="Held-out problems to generate on.", min=10)] = 400,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """The whole way on the bundled model: discover, record, make vectors, serve, and steer through the client."""
    from steering_pts.demo.run import DemoOptions, run_demo  # noqa: PLC0415 -- needs the client, other commands don't

    run_demo(DemoOptions(run, problems, test_problems, seed))
