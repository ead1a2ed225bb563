"""`SteeredModel`: a loaded model, its engine and its vectors behind one door. The server and discovery both use it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from pathlib import Path

from steering_engine.completions import GrowingCompletion
from steering_engine.engine.base import Engine, EngineRequest, EngineStats, Sampling, Turn
from steering_engine.engine.continuous import ContinuousEngine
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.stability import SHARED
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.errors import EngineStoppedError, ModelError
from steering_engine.loading import LoadedModel, check_source, load_model
from steering_engine.prompts import detokenized, is_long, prompt_ids, tokenized
from steering_engine.steering.compile import compile_plan
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.leases import VectorLease
from steering_engine.vectors.registry import VectorRegistry
from steering_spec import (
    Chat,
    Completion,
    GenerationSpec,
    InvalidRequestError,
    ModelFacts,
    ModelInfo,
    Prompt,
    PromptText,
    SamplingParams,
    StreamDelta,
    Violation,
    request_violations,
)
from steering_spec.admission import prompt_violations
from steering_spec.facts import FindVector

__all__ = ["EngineLimits", "SteeredModel"]


class SteeredModel:
    """A model that generates with steering.

    Attributes:
        loaded: The model and its tokenizer.
        info: Its description.
        limits: Its bounds.
        vectors: The vectors that requests may name.
        engine: The engine, for callers that have ids and plans already (rollouts).
    """

    def __init__(
        self, loaded: LoadedModel, name: str, limits: EngineLimits, followers: Followers | None = None
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        rows = limits.vector_rows(loaded.block_count, loaded.hidden_size)
        table = DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device, rows)
        self.vectors = VectorRegistry(loaded, table, limits.vector_memory_bytes)
        self.info = _describe(loaded, name, limits)
        self.engine: Engine = ContinuousEngine(loaded, table, limits, followers)
        self._counter = itertools.count()

    @classmethod
    def load(
        cls,
        source: str,
        *,
        name: str = "",
        device: str = "auto",
        dtype: str = "auto",
        limits: EngineLimits | None = None,
        tensor_parallel: int = 1,
    ) -> SteeredModel:
        """Loads a model and starts its engine.

        Args:
            source: Folder, or id on the hub.
            name: What `models/{name}` is; empty takes the last part of `source`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`.
            limits: Explicit bounds; None takes the defaults.
            tensor_parallel: Processes that share the model, each with a device of its own. This one is the first; the
                others are started here and end when the model is closed.

        Raises:
            ModelError: The model can't be loaded or can't be run; the message says why.
        """
        name = name or Path(source).resolve().name
        limits = limits or EngineLimits()
        if tensor_parallel == 1:
            return cls(load_model(source, device, dtype), name, limits)
        check_source(source, device, dtype, tensor_parallel)
        if limits.deterministic:
            raise ModelError(f"{source} can't be run deterministically: {SHARED}")
        followers = Followers.start(source, device, dtype, limits, tensor_parallel)
        with followers.guard():
            return cls(load_model(source, device, dtype, tensor_parallel), name, limits, followers)

    async def generate(self, spec: GenerationSpec) -> Completion:
        """Makes one completion. Raises what `stream` raises, and ValueError for a spec that asks for several."""
        if spec.sampling.n != 1:
            raise ValueError(f"the spec asks for {spec.sampling.n} completions; `generate_many` makes them")
        (completion,) = await self.generate_many(spec)
        return completion

    async def generate_many(self, spec: GenerationSpec, turn: Turn | None = None) -> tuple[Completion, ...]:
        """Makes all completions that a spec asks for, in the order of their seeds; see `stream`."""
        async with aclosing(self._events(spec, turn, streaming=False)) as events:
            completions = [event async for event in events if isinstance(event, Completion)]
        if len(completions) < spec.sampling.n:
            raise EngineStoppedError("the request was cancelled")
        return tuple(sorted(completions, key=lambda completion: completion.index))

    async def stream(
        self, spec: GenerationSpec, turn: Turn | None = None
    ) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Makes the completions that a spec asks for, yielding what is new at every step.

        Each completion is yielded whole when it ends, after its last delta; `index` says of either which completion it
        is. Completion i draws with seed + i, and their prompt is computed once.

        Close the iterator (`contextlib.aclosing`) to stop early; that frees the request's rows at the next step.

        Args:
            spec: The request.
            turn: What a request that can be run has to wait for before it enters the engine; None lets it in at once.

        Raises:
            InvalidRequestError: The request can't be run; raised before the first item, with everything wrong at once.
            NotFiniteError: The request is steered so strongly that there is nothing to sample.
            EngineStoppedError: The engine stopped before the request was done.
        """
        async with aclosing(self._events(spec, turn, streaming=True)) as events:
            async for event in events:
                yield event

    async def _events(
        self, spec: GenerationSpec, turn: Turn | None, *, streaming: bool
    ) -> AsyncGenerator[StreamDelta | Completion, None]:
        accepted = time.perf_counter()
        # Callers may reuse their ids; the engine's must be unique.
        number = next(self._counter)
        own_id = f"{spec.request_id}#{number}" if spec.request_id else f"request-{number}"
        lease = self.vectors.lease()
        try:
            if is_long(spec):  # judging and tokenizing take long then, and nobody else should wait for it
                requests = await asyncio.to_thread(self._requests, spec, own_id, lease, streaming=streaming)
            else:
                requests = self._requests(spec, own_id, lease, streaming=streaming)
        except BaseException:
            lease.release()
            raise
        completions = [
            GrowingCompletion(request, index=index, request_id=spec.request_id or own_id, accepted=accepted)
            for index, request in enumerate(requests)
        ]
        is_in = False
        try:
            async with nullcontext() if turn is None else turn(requests):
                is_in = True
                for completion in completions:
                    completion.submit()
                # The engine gives the lease back: a vector's rows may be read until its last forward with them is over.
                async with aclosing(self.engine.submit_many(requests, lease.release)) as chunks:
                    async for index, chunk in chunks:
                        yield completions[index].add(chunk)
                        if chunk.finish_reason is not None:
                            yield completions[index].finish(chunk.finish_reason)
        finally:
            if not is_in:  # cancelled while it waited for its turn
                lease.release()

    def _requests(
        self, spec: GenerationSpec, own_id: str, lease: VectorLease, *, streaming: bool
    ) -> list[EngineRequest]:
        """What the engine is asked for, one request for each completion."""
        ids, faults = self._judge(spec, lease.facts)
        if faults or ids is None:
            raise InvalidRequestError(faults)
        sampling = self._sampling(spec.sampling, room=self.info.facts.max_context_tokens - len(ids))
        plan = None
        if spec.steering is not None and spec.steering.rules:
            plan = compile_plan(spec.steering, lease, ids)
        first = EngineRequest(
            request_id=own_id,
            prompt_ids=ids,
            sampling=sampling,
            plan=plan,
            streaming=streaming,
            banned_first_ids=spec.sampling.banned_first_ids,
            trace=spec.steering_trace,
        )
        others = (
            replace(
                first,
                request_id=f"{own_id}.{index}",
                sampling=replace(sampling, seed=sampling.seed + index),
            )
            for index in range(1, spec.sampling.n)
        )
        return [first, *others]

    def judge(self, spec: GenerationSpec) -> tuple[tuple[int, ...] | None, list[Violation]]:
        """The prompt's ids, None where it gives none, and everything that keeps a request from being run."""
        return self._judge(spec, self.vectors.facts)

    def _judge(
        self, spec: GenerationSpec, find_vector: FindVector
    ) -> tuple[tuple[int, ...] | None, list[Violation]]:
        facts = self.info.facts
        ids, refused = None, list[Violation]()
        # A sound prompt is tokenized whatever else is wrong, so that everything comes back in one answer.
        if not any(prompt_violations(spec.prompt, facts)):
            try:
                ids = self.prompt_ids(spec.prompt)
            except InvalidRequestError as error:
                refused += error.violations
        return ids, refused + request_violations(spec, facts, find_vector, ids)

    def _sampling(self, asked: SamplingParams, room: int) -> Sampling:
        return Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k or 0,
            max_tokens=asked.max_tokens or min(self.info.facts.default_max_tokens, room),
            seed=secrets.randbits(62) if asked.seed is None else asked.seed,
            stop=asked.stop,
            min_p=asked.min_p,
            min_tokens=asked.min_tokens,
            repetition_penalty=asked.repetition_penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=asked.logit_bias,
            top_logprobs=asked.top_logprobs,
        )

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt; text is tokenized as it stands, chat is rendered by the model's template.

        Raises:
            InvalidRequestError: The prompt has no tokens, or the template refuses the messages.
        """
        return prompt_ids(self.loaded.tokenizer, prompt)

    def tokenize(self, prompt: PromptText | Chat) -> list[int]:
        """The ids that generation would use; none for a text without tokens.

        Raises:
            InvalidRequestError: The template refuses the messages.
        """
        return tokenized(self.loaded.tokenizer, prompt)

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return detokenized(self.loaded.tokenizer, ids, skip_special_tokens=skip_special_tokens)

    def stats(self) -> EngineStats:
        """The load now and the counts since start."""
        return self.engine.stats()

    def failure(self) -> str | None:
        """Why nothing more can be generated; None while the engine runs."""
        return self.engine.failure()

    async def close(self) -> None:
        """Stops the engine; running requests end with EngineStoppedError."""
        await self.engine.close()


def _describe(loaded: LoadedModel, name: str, limits: EngineLimits) -> ModelInfo:
    return ModelInfo(
        facts=ModelFacts(
            name=f"models/{name}",
            layer_count=loaded.block_count,
            vocab_size=loaded.vocab_size,
            max_context_tokens=limits.context_tokens(loaded.context_tokens),
            default_max_tokens=limits.default_max_tokens,
            chat_supported=loaded.tokenizer.chat_template is not None,
        ),
        architecture=type(loaded.model).__name__,
        hidden_size=loaded.hidden_size,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        config_digest=loaded.config_digest,
        tokenizer_digest=loaded.tokenizer_digest,
    )
