"""`pts discover`: find pivotal tokens."""

from __future__ import annotations

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
from steering_pts.cli.endpoint_options import TlsCa, TlsCert, TlsKey, TlsServerName, TokenFile, UseTls
from steering_pts.cli.options import AsJson, Device, Dtype, OracleOption, Run
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.cli.tables import print_summary
from steering_pts.credentials import CredentialFiles
from steering_pts.data import load_problems
from steering_pts.oracles.registry import ORACLES
from steering_pts.progress import RunProgress
from steering_pts.settings import SamplerSettings, SearchSettings

_SAMPLER = SamplerSettings()


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
    min_p: Annotated[
        float, typer.Option(help="Min-p of the sampler: least share of the most likely token; 0 is off.")
    ] = _SAMPLER.min_p,
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
    explore_most: how.ExploreMost = how.DEFAULT.explore_most,
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
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a running server that makes the rollouts; repeat it to share the work."
        ),
    ] = None,
    tls: UseTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = "",
    token_file: TokenFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch: Annotated[
        int | None, typer.Option(help="Completions sampled at once by the engine here.", min=1, max=512)
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Rollouts are the same, to the bit, whatever the batch (float32 on a CPU); on where possible.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find pivotal tokens and keep everything in RUN.

    Interrupted at any moment, the same command goes on where it stopped. The guarantee is on effects below --delta0:
    at most a share --fdr of the reported tokens has a smaller effect. Where the work is done and how much of it
    at once (--endpoint, --batch) is no part of a run: it may be continued elsewhere.
    """
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
    problems = load_problems(dataset, options)
    sampler = SamplerSettings(temperature, top_p, top_k, max_tokens, min_p)
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
        explore_most=explore_most,
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
        choice = ModelChoice(model, device, dtype, deterministic, batch)
        discover_into(
            folder,
            choice,
            problems,
            judge,
            sampler,
            search,
            seed,
            progress,
            raw=raw,
            endpoints=endpoint or (),
            credentials=credentials,
        )
    print_summary(folder, as_json=as_json)
