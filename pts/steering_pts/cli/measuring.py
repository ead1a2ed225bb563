"""What completions are measured with: as a run says, or as options say where there is no run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple

from steering_pts.calibration.trials import Bench
from steering_pts.cli.run import RunFolder, sampler_of, setting
from steering_pts.cli.running import ModelChoice, oracle_for, oracle_of, rollouts
from steering_pts.data import Problem
from steering_pts.errors import SearchError
from steering_pts.oracles.base import Oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.settings import SamplerSettings


@dataclass(frozen=True, slots=True)
class OwnOptions:
    """What a run would say, for vectors that come from none; None is what was not given.

    Attributes:
        model: `demo`, a folder, or a hub id.
        oracle: Its name; None chooses by the data.
        oracle_option: Texts `NAME=VALUE`.
        raw: Plain prompts.
        temperature: Of the sampler, like the four that follow.
        top_p: Nucleus.
        top_k: Top-k.
        min_p: Min-p.
        max_tokens: Longest completion.
        seed: Seed of everything.
        dtype: `auto`, or what torch calls it.
    """

    model: str | None = None
    oracle: str | None = None
    oracle_option: tuple[str, ...] | None = None
    raw: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    dtype: str | None = None

    @property
    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        return [
            "--" + field.name.replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) not in (None, ())
        ]

    @property
    def sampler(self) -> SamplerSettings:
        """The sampler; what was not given has its default."""
        names = ("temperature", "top_p", "top_k", "max_tokens", "min_p")
        return SamplerSettings(
            **{name: value for name in names if (value := getattr(self, name)) is not None}
        )


class Measuring(NamedTuple):
    """A bench, and whether its prompts are plain."""

    bench: Bench
    raw: bool


@contextmanager
def measuring(
    folder: RunFolder, own: OwnOptions, device: str, problems: Sequence[Problem], progress: RunProgress
) -> Iterator[Measuring]:
    """The model, the oracle and the prompts for problems; closed at the end.

    Raises:
        SearchError: A run and options that it decides, or neither a run nor a model.
        PtsError: The run, the oracle or the problems can't be used.
        ModelError: The model can't be loaded.
    """
    if folder.ledger.is_file():
        if own.given:
            raise SearchError(f"{folder.path}: the run decides {', '.join(own.given)}; leave them out")
        with folder.read() as ledger:
            choice = ModelChoice(setting(ledger, "model", str), device, setting(ledger, "dtype", str))
            raw, seed, sampler = (
                setting(ledger, "raw", bool),
                setting(ledger, "seed", int),
                sampler_of(ledger),
            )
            with (
                oracle_of(ledger, problems) as judge,
                _bench(choice, sampler, judge, problems, seed, progress, raw=raw) as bench,
            ):
                yield Measuring(bench, raw)
        return
    if own.model is None:
        raise SearchError(
            f"{folder.path}: no run here; make one with `pts discover`, or name --model for vectors from elsewhere"
        )
    choice = ModelChoice(own.model, device, own.dtype or "auto")
    raw = bool(own.raw)
    with (
        oracle_for(own.oracle, problems, own.oracle_option or ()) as judge,
        _bench(choice, own.sampler, judge, problems, own.seed or 0, progress, raw=raw) as bench,
    ):
        yield Measuring(bench, raw)


@contextmanager
def _bench(
    choice: ModelChoice,
    sampler: SamplerSettings,
    oracle: Oracle,
    problems: Sequence[Problem],
    seed: int,
    progress: RunProgress,
    *,
    raw: bool,
) -> Iterator[Bench]:
    with rollouts(choice, sampler) as (model, source):
        prompts = encode_prompts(model, problems, raw=raw)
        by_id = {problem.id: problem for problem in problems}
        yield Bench(model, source, oracle, by_id, prompts, sampler, seed, progress)
