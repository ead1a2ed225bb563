"""A run's folder, and what a command needs to work on it: the model, its rollouts, the oracle, the problems."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from steering_engine.alias import resolve_model
from steering_engine.errors import ModelError
from steering_engine.loading import weights_digest
from steering_engine.model import EngineLimits, SteeredModel
from steering_pts.calibration.run import CalibrationFiles
from steering_pts.credentials import Credentials
from steering_pts.data import Problem
from steering_pts.discovery import Discovery
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger, LedgerReader
from steering_pts.ledger.lock import WriterLock, lock_holder
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

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class RunState:
    """Whether a run is finished, and the process that is writing to it (0 where its id can't be told), if any."""

    finished: bool
    process: int | None

    def __str__(self) -> str:
        if self.process is not None:
            return f"running in process {self.process}" if self.process else "running"
        return "finished" if self.finished else "interrupted; the command that began it goes on"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The run's ledger."""
        return self.path / "ledger.sqlite"

    @property
    def pivots(self) -> Path:
        """The pivots as JSON lines."""
        return self.path / "pivots.jsonl"

    @property
    def activations(self) -> Path:
        """The recorded states."""
        return self.path / "activations.safetensors"

    @property
    def candidates(self) -> Path:
        """The folder of every group's vectors by every method, from which calibration chooses."""
        return self.path / "candidates"

    @property
    def vectors(self) -> Path:
        """The folder of vector files, which a server can be pointed at."""
        return self.path / "vectors"

    @property
    def evaluation(self) -> Path:
        """What an evaluation came to."""
        return self.path / "evaluation.json"

    @property
    def evaluated(self) -> Path:
        """The folder of an evaluation's completions and plots."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    def clear(self) -> None:
        """Removes the files of the run, and nothing else that may be in the folder.

        Raises:
            LedgerLockedError: Another process is writing to it.
        """
        lock = WriterLock(self.ledger)
        try:
            ledger = [self.ledger.with_name(self.ledger.name + suffix) for suffix in ("", "-wal", "-shm")]
            calibration = CalibrationFiles(self.path)
            results = (calibration.log, calibration.result, self.evaluation, self.report)
            for path in (*ledger, self.pivots, self.activations, *results):
                path.unlink(missing_ok=True)
            for unfinished in self.path.glob(f".{self.activations.name}.*"):
                unfinished.unlink(missing_ok=True)
            for folder in (self.candidates, self.vectors, self.evaluated):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()

    def require_pivots(self) -> Path:
        """The file of pivots, which a finished run has.

        Raises:
            LedgerError: The run is not finished.
        """
        if not self.pivots.is_file():
            raise LedgerError(f"{self.path}: the run is not finished; the command that began it goes on")
        return self.pivots

    def state(self) -> RunState:
        """Whether it is finished, and who is writing to it."""
        return RunState(finished=self.pivots.is_file(), process=lock_holder(self.ledger))

    def read(self) -> LedgerReader:
        """The run's ledger for reading.

        Raises:
            LedgerError: There is no run here.
        """
        if not self.ledger.is_file():
            raise LedgerError(
                f"{self.path}: no run here (it has no {self.ledger.name}); make one with `pts discover`"
            )
        return Ledger.read(self.ledger)


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


def setting(ledger: LedgerReader, name: str, kind: type[Value]) -> Value:
    """A setting of a run.

    Raises:
        LedgerError: The run does not have it, or it is something else.
    """
    value = ledger.settings().get(name)
    if not isinstance(value, kind):
        raise LedgerError(f"{ledger.path}: setting {name!r} is {value!r}; expected {kind.__name__}")
    return value


def tokenizer_of(
    ledger: LedgerReader, *, skip_special_tokens: bool = False
) -> Callable[[Sequence[int]], str]:
    """Turns token ids of a run into text; loads the tokenizer of its model, and nothing else of it.

    Args:
        ledger: The run's ledger.
        skip_special_tokens: Leave special tokens out, as oracles read a completion.

    Raises:
        ModelError: There is no such model any more.
        LedgerError: It has another tokenizer now.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 -- other commands load it with the model

    source = setting(ledger, "model", str)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(source))
        definition = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{source}: its tokenizer can't be loaded: {str(error).splitlines()[0]}") from error
    if hashlib.sha256(definition.encode()).hexdigest() != setting(ledger, "tokenizer_digest", str):
        raise LedgerError(f"{source} has another tokenizer than the model that the run was made with")
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def sampler_of(ledger: LedgerReader) -> SamplerSettings:
    """The sampler of a run."""
    return SamplerSettings(
        temperature=setting(ledger, "sampler.temperature", float),
        top_p=setting(ledger, "sampler.top_p", float),
        top_k=setting(ledger, "sampler.top_k", int),
        max_tokens=setting(ledger, "sampler.max_tokens", int),
        min_p=setting(ledger, "sampler.min_p", float),
    )
