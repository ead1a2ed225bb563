"""What a command needs to work on a run: the model, its rollouts, the oracle; it imports torch, `run` does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from steering_engine.alias import resolve_model
from steering_engine.loading import weights_digest
from steering_engine.model import EngineLimits, SteeredModel
from steering_pts.cli.run import RunFolder
from steering_pts.credentials import Credentials
from steering_pts.data import Problem
from steering_pts.discovery import Discovery
from steering_pts.ledger import Ledger, LedgerReader
from steering_pts.oracles.base import Oracle
from steering_pts.oracles.registry import (
    check_fit,
    choose_oracle,
    make_oracle,
    oracle_of_settings,
    oracle_settings,
)
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.remote_rollouts import RemoteRollouts
from steering_pts.rollouts import EngineRollouts, RolloutSource
from steering_pts.settings import JsonValue, SamplerSettings, SearchSettings, as_json


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, and how it is loaded and run; only the first three can change what comes out.

    Attributes:
        source: `demo`, a folder, or a hub id.
        device: `auto`, or what torch calls it.
        dtype: `auto`, or what torch calls it.
        deterministic: Results have the same bits in any batch; None means where that is possible.
        batch: Completions sampled at once; None means the engine's default.
    """

    source: str
    device: str = "auto"
    dtype: str = "auto"
    deterministic: bool | None = None
    batch: int | None = None

    def load(self) -> SteeredModel:
        """Loads the model with its engine.

        Raises:
            ModelError: It can't be loaded, or not be run deterministically.
        """
        limits = EngineLimits(deterministic=self.deterministic)
        if self.batch is not None:
            limits = replace(limits, max_concurrent_requests=self.batch)
        return SteeredModel.load(
            resolve_model(self.source),
            name=Path(self.source).name,
            device=self.device,
            dtype=self.dtype,
            limits=limits,
        )


@contextmanager
def rollouts(choice: ModelChoice, sampler: SamplerSettings) -> Iterator[tuple[SteeredModel, EngineRollouts]]:
    """The model and its rollouts, closed at the end."""
    model = choice.load()
    with EngineRollouts(model, sampler) as source:
        yield model, source


@contextmanager
def rollouts_at(
    endpoints: Sequence[str],
    choice: ModelChoice,
    sampler: SamplerSettings,
    credentials: Credentials | None = None,
) -> Iterator[tuple[SteeredModel, RolloutSource]]:
    """The model, and rollouts through the servers at these addresses; through the model itself when there are none.

    Raises:
        EndpointError: A server is not to be reached or serves something else.
    """
    with rollouts(choice, sampler) as (model, local):
        if not endpoints:
            yield model, local
            return
        with RemoteRollouts(endpoints, model, sampler, credentials=credentials) as remote:
            yield model, remote


@contextmanager
def oracle_for(
    name: str | None, problems: Sequence[Problem], options: Sequence[str] = ()
) -> Iterator[Oracle]:
    """The oracle of that name, or the one that fits the data; closed at the end.

    Args:
        name: Its name, None to choose by the data.
        problems: What it is to judge; it must be able to.
        options: Its options, texts `NAME=VALUE`.

    Raises:
        OracleError: Unknown, not its options, or it does not fit the problems.
    """
    made = choose_oracle(problems, options) if name is None else make_oracle(name, assignments=options)
    with closing(made) as oracle:
        check_fit(oracle, problems)
        yield oracle


@contextmanager
def oracle_of(ledger: LedgerReader, problems: Sequence[Problem]) -> Iterator[Oracle]:
    """The oracle that judged a run, for other problems; closed at the end.

    Raises:
        OracleError: It can't be made any more, or it does not fit the problems.
    """
    with closing(oracle_of_settings(ledger.settings())) as oracle:
        check_fit(oracle, problems)
        yield oracle


def discover_into(
    folder: RunFolder,
    choice: ModelChoice,
    problems: Sequence[Problem],
    oracle: Oracle,
    sampler: SamplerSettings,
    search: SearchSettings,
    seed: int,
    progress: RunProgress,
    *,
    raw: bool = False,
    endpoints: Sequence[str] = (),
    credentials: Credentials | None = None,
) -> None:
    """Runs or continues a discovery in a folder, and writes its pivots beside the ledger.

    `endpoints` are servers that make the rollouts in place of the engine here, and `credentials` what they let us in
    with. They are no part of the run's settings: a run may be continued elsewhere.

    Raises:
        EndpointError: A server can't take part, or none is left.
        ModelError: The model can't be loaded.
        SearchError: The model has no chat template and `raw` is not asked for, or prompts are too long for it.
        LedgerError: The folder holds another run, or somebody else is writing to it.
    """
    with rollouts_at(endpoints, choice, sampler, credentials) as (model, source):
        prompts = encode_prompts(model, problems, raw=raw)
        settings: dict[str, JsonValue] = {
            "model": choice.source,
            "model_config_digest": model.info.config_digest,
            "tokenizer_digest": model.info.tokenizer_digest,
            "weights_digest": weights_digest(model.loaded.model),
            "dtype": model.info.dtype,
            "problems_digest": hashlib.sha256(" ".join(p.id for p in problems).encode()).hexdigest(),
            **oracle_settings(oracle),
            "seed": seed,
            "raw": raw,
            **as_json(sampler=sampler, search=search),
        }
        ledger = Ledger.open(folder.ledger, settings)
        try:
            Discovery(model, prompts, source, oracle, ledger, sampler, search, seed, progress).run(problems)
            tokenizer = model.loaded.tokenizer
            ledger.export_pivots_jsonl(folder.pivots, lambda ids: str(tokenizer.decode(list(ids))))
        finally:
            ledger.close()
