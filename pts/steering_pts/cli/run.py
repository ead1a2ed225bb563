"""A run's folder, and what its ledger tells of it without the model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steering_engine.alias import resolve_model
from steering_engine.errors import ModelError
from steering_pts.calibration.files import CalibrationFiles
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger, LedgerReader
from steering_pts.ledger.lock import WriterLock, lock_holder
from steering_pts.settings import SamplerSettings

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
        return CalibrationFiles(self.path).candidates

    @property
    def vectors(self) -> Path:
        """The folder of vector files, which a server can be pointed at."""
        return CalibrationFiles(self.path).vectors

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
