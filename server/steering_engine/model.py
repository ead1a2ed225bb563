"""`SteeredModel`: a loaded model, its engine and its vectors behind one door. The server and discovery both use it."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from steering_engine.engine.base import Engine, EngineRequest, EngineStats, Sampling
from steering_engine.engine.continuous import ContinuousEngine
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.stability import SHARED
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.errors import EngineStoppedError, ModelError
from steering_engine.loading import LoadedModel, check_source, load_model
from steering_engine.steering.compile import compile_plan
from steering_engine.steering.plan import SteeringPlan
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.registry import VectorRegistry
from steering_spec import (
    Chat,
    Completion,
    GenerationSpec,
    InvalidRequestError,
    ModelFacts,
    ModelInfo,
    Prompt,
    PromptIds,
    PromptText,
    SteeringAct,
    StreamDelta,
    Token,
    Usage,
    Violation,
    request_violations,
)

__all__ = ["EngineLimits", "SteeredModel"]

_LONG_CHARACTERS = 20_000  # tokenized in about 10 ms


class SteeredModel:
    """A model that generates with steering.

    Attributes:
        loaded: The model and its tokenizer.
        info: Its description.
        vectors: The vectors that requests may name.
        engine: The engine, for callers that have ids and plans already (rollouts).
    """

    def __init__(
        self, loaded: LoadedModel, name: str, limits: EngineLimits, followers: Followers | None = None
    ) -> None:
        self.loaded = loaded
        table = DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device)
        self.vectors = VectorRegistry(loaded, table)
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
        """Makes one completion. Raises what `stream` raises."""
        async with aclosing(self._events(spec, streaming=False)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise EngineStoppedError("the request was cancelled")

    async def stream(self, spec: GenerationSpec) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Makes one completion, yielding what is new at every step; the last item is the whole completion.

        Close the iterator (`contextlib.aclosing`) to stop early; that frees the request's row at the next step.

        Raises:
            InvalidRequestError: The request can't be run; raised before the first item, with everything wrong at once.
            NotFiniteError: The request is steered so strongly that there is nothing to sample.
            EngineStoppedError: The engine stopped before the request was done.
        """
        async with aclosing(self._events(spec, streaming=True)) as events:
            async for event in events:
                yield event

    async def _events(
        self, spec: GenerationSpec, *, streaming: bool
    ) -> AsyncGenerator[StreamDelta | Completion, None]:
        accepted = time.perf_counter()
        if _is_long(spec.prompt):  # tokenizing takes long then, and nobody else should wait for it
            request = await asyncio.to_thread(self._prepare, spec, streaming=streaming)
        else:
            request = self._prepare(spec, streaming=streaming)
        plan = request.plan
        tokens: list[Token] = []
        acts: list[SteeringAct] = []
        texts: list[str] = []
        first_token = 0.0
        finish = None
        submitted = time.perf_counter()
        async with aclosing(self.engine.submit(request)) as chunks:
            async for chunk in chunks:
                first_token = submitted - accepted + (chunk.first_token_seconds or 0.0)
                tokens += chunk.tokens
                acts += chunk.acts
                texts.append(chunk.text)
                finish = chunk.finish_reason
                yield StreamDelta(chunk.text, chunk.tokens, chunk.acts if spec.steering_trace else ())
        if finish is None:
            return
        yield Completion(
            text="".join(texts),
            tokens=tuple(tokens),
            finish_reason=finish,
            usage=Usage(
                prompt_tokens=len(request.prompt_ids),
                generated_tokens=len(tokens),
                steered_rows=len({_row(act, len(request.prompt_ids)) for act in acts}),
                first_token_seconds=first_token,
                total_seconds=time.perf_counter() - accepted,
            ),
            seed=request.sampling.seed,
            request_id=spec.request_id or request.request_id,
            applied_steering=None if plan is None else plan.applied,
            acts=tuple(acts) if spec.steering_trace else (),
        )

    def _prepare(self, spec: GenerationSpec, *, streaming: bool) -> EngineRequest:
        facts = self.info.facts
        faults = request_violations(spec, facts, self.vectors.facts)
        prompt_ids: tuple[int, ...] = ()
        if not any(re.match(r"(text|tokens|chat)\b", fault.field) for fault in faults):
            # A sound prompt is tokenized whatever else is wrong, so that everything comes back in one answer.
            prompt_ids = self.prompt_ids(spec.prompt)
            faults = request_violations(spec, facts, self.vectors.facts, prompt_ids)
        if faults:
            raise InvalidRequestError(faults)
        sampling = spec.sampling
        room = facts.max_context_tokens - len(prompt_ids)
        return EngineRequest(
            # Callers may reuse their ids; the engine's must be unique.
            request_id=f"{spec.request_id}#{next(self._counter)}"
            if spec.request_id
            else f"request-{next(self._counter)}",
            prompt_ids=prompt_ids,
            sampling=Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or 0,
                max_tokens=sampling.max_tokens or min(facts.default_max_tokens, room),
                seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
                stop=sampling.stop,
                min_p=sampling.min_p,
            ),
            plan=self._plan(spec, len(prompt_ids)),
            streaming=streaming,
            banned_first_ids=sampling.banned_first_ids,
        )

    def _plan(self, spec: GenerationSpec, prompt_length: int) -> SteeringPlan | None:
        if spec.steering is None or not spec.steering.rules:
            return None
        return compile_plan(spec.steering, self.vectors, prompt_length)

    def prompt_ids(self, prompt: PromptText | PromptIds | Chat) -> tuple[int, ...]:
        """The token ids of a prompt; text is tokenized as it stands, chat is rendered by the model's template.

        Raises:
            InvalidRequestError: The prompt has no tokens, or the template refuses the messages.
        """
        if isinstance(prompt, PromptIds):
            return prompt.ids
        tokenizer = self.loaded.tokenizer
        field = "text"
        if isinstance(prompt, PromptText):
            ids = tokenizer(prompt.text)["input_ids"]
        else:
            field = "chat.messages"
            ids = self._chat_ids(prompt)
        if not ids:
            raise InvalidRequestError([Violation(field, "the prompt has no tokens")])
        return tuple(ids)

    def _chat_ids(self, chat: Chat) -> list[int]:
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        options: dict[str, Any] = (
            {"continue_final_message": True} if chat.final_message_open else {"add_generation_prompt": True}
        )
        try:
            encoded = self.loaded.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, **options
            )
        except (TemplateError, ValueError, TypeError) as error:
            fault = Violation("chat.messages", f"the model's chat template refuses them: {error}")
            raise InvalidRequestError([fault]) from error
        ids: list[int] = encoded["input_ids"]
        return ids

    def stats(self) -> EngineStats:
        """The load now and the counts since start."""
        return self.engine.stats()

    async def close(self) -> None:
        """Stops the engine; running requests end with EngineStoppedError."""
        await self.engine.close()


def _row(act: SteeringAct, prompt_length: int) -> int:
    # The last prompt row is step 0 too, so a rule of each phase may name it in its own way.
    return act.prompt_position or 0 if act.step is None else prompt_length - 1 + act.step


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


def _is_long(prompt: Prompt) -> bool:
    if isinstance(prompt, PromptIds):
        return False
    texts = (
        [prompt.text] if isinstance(prompt, PromptText) else [message.content for message in prompt.messages]
    )
    return sum(map(len, texts)) > _LONG_CHARACTERS
