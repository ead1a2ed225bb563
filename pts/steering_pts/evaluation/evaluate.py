"""An evaluation from the problems to the report."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from steering_engine.alias import resolve_model
from steering_engine.errors import ModelError, one_line
from steering_engine.loading import config_digest_of
from steering_engine.prompts import prompt_ids
from steering_pts.credentials import Credentials
from steering_pts.data import Problem
from steering_pts.errors import EndpointError, EvaluationError
from steering_pts.evaluation.arms import ArmKind, check_count
from steering_pts.evaluation.effects import SideEffects, side_effects
from steering_pts.evaluation.figures import check_fields, figures_of
from steering_pts.evaluation.forcing import KnownAlternatives
from steering_pts.evaluation.journal import Journal
from steering_pts.evaluation.measuring import Measurement, Measuring, Prompt, judged
from steering_pts.evaluation.neutral import neutral_ids
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.evaluation.sampling import ServedCompletions, served_model
from steering_pts.evaluation.served import ServedVector, loaded_into, randomised
from steering_pts.evaluation.settings import EvaluationSettings
from steering_pts.oracles.base import Oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import question_prompt
from steering_pts.server_process import server_process
from steering_spec import ModelInfo, PromptIds

JOURNAL: Final = "completions.jsonl"
VERDICTS: Final = "verdicts.jsonl"
_WEIGHTS: Final = ("*.safetensors", "*.bin", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Where the completions come from.

    Attributes:
        model: `demo`, a folder or a hub id: served here for the purpose where there is no endpoint, and loaded here for
            prompts and side effects; None where only the endpoint has it.
        endpoints: `host:port` of each running server that shares the work; none starts servers.
        device: As the server takes it.
        dtype: As the server takes it.
        servers: How many to start; each has its share of the cores.
        credentials: What the endpoints let us in with; servers that are started want none.
    """

    model: str | None
    endpoints: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    servers: int = 1
    credentials: Credentials = field(default_factory=Credentials)

    @contextmanager
    def targets(self) -> Iterator[tuple[str, ...]]:
        """`host:port` of the servers, for as long as they are needed.

        Raises:
            ServerProcessError: One did not start.
        """
        if self.endpoints:
            yield self.endpoints
            return
        if self.model is None:
            raise EvaluationError("name a model to serve, or the endpoint of a running server")
        options = ("--device", self.device, "--dtype", self.dtype)
        environment = {}
        if self.servers > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.servers))
        with ExitStack() as running, ThreadPoolExecutor(self.servers) as starting:
            # A start takes seconds, mostly of one core, so they start beside each other.
            started = [
                starting.submit(
                    running.enter_context,
                    server_process(self.model, None, *options, environment=environment),
                )
                for _ in range(self.servers)
            ]
            yield tuple(one.result() for one in started)

    def stamp(self, info: ModelInfo) -> str:
        """What identifies the weights, as far as it can be told without loading them: a changed file changes it."""
        folder = None if self.model is None else Path(resolve_model(self.model))
        files: list[object] = []
        if folder is not None and folder.is_dir():
            found = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
            files = [
                (path.name, status.st_size, status.st_mtime_ns) for path in found for status in [path.stat()]
            ]
        told = (info.facts.name, info.config_digest, info.tokenizer_digest, info.dtype, files)
        return hashlib.sha256(repr(told).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """What is to be evaluated.

    Attributes:
        served: Where the completions come from.
        dataset: Where the problems are from, as the report tells it.
        problems: Problems that nothing was made from or chosen on; at least two.
        vectors: The vectors.
        known: Better tokens that a run knows of, of each vector.
        settings: What is measured, and how.
        folder: Where everything is kept, so that the same task goes on.
        divergence: Whether the model is loaded for side effects.
        neutral: A neutral text whose divergence is told as well.
        remarks: Sentences that the report shall hold.
    """

    served: ServedBy
    dataset: str
    problems: Sequence[Problem]
    vectors: Sequence[ServedVector]
    known: Sequence[KnownAlternatives]
    settings: EvaluationSettings
    folder: Path
    divergence: bool = True
    neutral: str | None = None
    remarks: Sequence[str] = ()


def evaluate(task: EvaluationTask, oracle: Oracle, progress: RunProgress) -> EvaluationReport:
    """Measures everything; what an earlier call with the same folder has measured is not measured again.

    Raises:
        EvaluationError: The task can't be done; before any work.
        EndpointError: The server can't be reached, serves something else, or refuses a request.
        ServerProcessError: The server did not start.
        ModelError: The model can't be loaded.
        LedgerError: The folder is in use.
    """
    started = time.perf_counter()
    settings = task.settings
    check_count(task.vectors)
    check_fields(task.problems, settings.by)
    if len(task.problems) < 2:
        raise EvaluationError(f"{task.dataset}: {len(task.problems)} problem; an evaluation needs at least 2")
    model = task.served.model
    tokenizer = None if model is None else load_tokenizer(model)
    if tokenizer is not None and task.neutral is not None:
        neutral_ids(tokenizer, task.neutral)  # which is measured last
    randoms = [
        [randomised(one, number + 1, settings.seed) for one in task.vectors]
        for number in range(settings.random_vectors if ArmKind.RANDOM in settings.kinds else 0)
    ]
    with Journal(task.folder / JOURNAL) as journal, Journal(task.folder / VERDICTS) as verdicts:
        with task.served.targets() as targets:
            credentials = task.served.credentials
            info = served_model(targets, credentials)
            prompts, room = _prompts(task, tokenizer, info)
            with (
                loaded_into(targets, task.vectors, credentials),
                loaded_into(targets, [one for row in randoms for one in row], credentials),
            ):
                measuring = Measuring(
                    completions=ServedCompletions(targets, task.served.stamp(info), journal, credentials),
                    problems=task.problems,
                    prompts=prompts,
                    room=room,
                    vectors=task.vectors,
                    randoms=randoms,
                    known=task.known if tokenizer is not None else (),
                    tokenizer=tokenizer,
                    settings=settings,
                    progress=progress,
                )
                completed, left_out = measuring.complete()
        measurement = judged(completed, task.problems, oracle, verdicts, progress)
    in_order = [prompts[problem.id] for problem in task.problems]
    # As it is served: `auto` may come to something else here.
    effects, without = _effects(task, in_order, measurement, info.dtype, progress)
    return EvaluationReport(
        model=model or info.facts.name,
        dataset=task.dataset,
        settings=settings,
        vectors=tuple(task.vectors),
        measurement=measurement,
        figures=figures_of(measurement, settings.by, settings.seed),
        effects=effects,
        remarks=(*task.remarks, *left_out, *without, *_warnings(measurement)),
        seconds=time.perf_counter() - started,
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, and nothing else of it.

    Raises:
        ModelError: There is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
        tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{model}: its tokenizer can't be loaded: {one_line(error)}") from error
    return tokenizer


def _prompts(
    task: EvaluationTask, tokenizer: Any, info: ModelInfo
) -> tuple[dict[str, Prompt], dict[str, int]]:
    """The prompt of each problem, as ids where the tokenizer is here, and the room that each leaves."""
    raw = task.settings.raw
    if not raw and not info.facts.chat_supported:
        raise EvaluationError(
            f"{info.facts.name} has no chat template; pass --raw to give it the questions as they are"
        )
    prompts: dict[str, Prompt] = {one.id: question_prompt(one, raw=raw) for one in task.problems}
    if tokenizer is None:
        return prompts, {}
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    differing = []
    if digest != info.tokenizer_digest:
        differing.append("tokenizer")
    own = task.served.model
    # With the divergence the model itself is loaded here, not its tokenizer alone.
    if task.divergence and own is not None and config_digest_of(resolve_model(own)) != info.config_digest:
        differing.append("configuration")
    if differing:
        raise EndpointError(
            f"{info.facts.name}, which is served, is another model than {task.served.model}: its "
            f"{' and its '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
        )
    ids = {name: prompt_ids(tokenizer, prompt) for name, prompt in prompts.items()}
    room = {name: info.facts.max_context_tokens - len(own) for name, own in ids.items()}
    if long := [name for name, left in room.items() if left < 1]:
        raise EvaluationError(
            f"{len(long)} of {len(ids)} prompts leave no room for an answer in the context of "
            f"{info.facts.max_context_tokens} tokens, the first that of problem {long[0]} ({len(ids[long[0]])} tokens)"
        )
    return {name: PromptIds(own) for name, own in ids.items()}, room


def _effects(
    task: EvaluationTask,
    prompts: Sequence[Prompt],
    measurement: Measurement,
    dtype: str,
    progress: RunProgress,
) -> tuple[SideEffects | None, list[str]]:
    model = task.served.model
    if not task.divergence:
        return None, []
    if model is None:
        return None, ["KL: left out, since the model is not here; name it with --model"]
    effects = side_effects(
        model,
        task.served.device,
        dtype,
        measurement.steered,
        prompts,
        task.vectors,
        task.neutral,
        progress,
    )
    return effects, []


def _warnings(measurement: Measurement) -> list[str]:
    if any(sample.acts for sample in measurement.steered.flat()):
        return []
    return [
        "nothing was steered: no trigger fired in any completion, so the arm steered is the unsteered one"
    ]
