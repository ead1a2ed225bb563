"""Generate and StreamGenerate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial

import grpc

from steering.v1 import generation_pb2, generation_pb2_grpc
from steering_engine.model import SteeredModel
from steering_engine.prompts import is_long
from steering_server.logs import NOTES, note
from steering_server.metrics import Metrics
from steering_server.rpc.backlog import Backlog
from steering_server.rpc.buffer import buffered
from steering_server.rpc.default_steering import fitting
from steering_server.rpc.turns import Turns
from steering_spec import (
    Completion,
    GenerationSpec,
    InvalidRequestError,
    Prompt,
    PromptIds,
    PromptText,
    SteeringSpec,
    StreamDelta,
    VectorRef,
    Violation,
    limits,
    request_violations,
)
from steering_spec.convert.completion import act_to_proto, completion_to_proto, delta_to_proto
from steering_spec.convert.request import read_generation_spec

_LONG_REQUEST_BYTES = 20_000  # read in a few milliseconds


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Generates with one model: the backlog bounds what is unfinished, and turns say who is next."""

    def __init__(
        self,
        model: SteeredModel,
        backlog: Backlog,
        turns: Turns,
        metrics: Metrics,
        *,
        stream_buffer: int,
        default_steering: SteeringSpec | None = None,
        log_prompts: bool = False,
    ) -> None:
        self._model = model
        self._backlog = backlog
        self._turns = turns
        self._metrics = metrics
        self._stream_buffer = stream_buffer
        self._default_steering = default_steering
        self._log_prompts = log_prompts

    async def Generate(  # noqa: N802 -- the name of the RPC
        self,
        request: generation_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> generation_pb2.GenerateResponse:
        """Generates the completions of one prompt."""
        spec = await self._spec(request.spec)
        connection = context.peer()
        with self._backlog.place(connection, spec.sampling.n):
            completions = await self._model.generate_many(spec, partial(self._turns.turn, connection))
        for completion in completions:
            self._record(completion)
        # In a thread: with alternatives or a trace these may be millions of objects.
        return await asyncio.to_thread(_response, completions)

    async def StreamGenerate(  # noqa: N802 -- the name of the RPC
        self,
        request: generation_pb2.StreamGenerateRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncGenerator[generation_pb2.StreamGenerateResponse, None]:
        """Generates the completions of one prompt and streams them."""
        spec = await self._spec(request.spec)
        # Every step of the engine gives a delta for each completion, and the last one its result as well.
        size = (self._stream_buffer + 1) * spec.sampling.n
        async with aclosing(buffered(self._items(spec, context.peer()), size)) as items:
            async for item in items:
                for message in _messages(item):
                    yield message

    async def _spec(self, message: generation_pb2.GenerationSpec) -> GenerationSpec:
        is_large = message.ByteSize() > _LONG_REQUEST_BYTES
        spec = await asyncio.to_thread(self._read, message) if is_large else self._read(message)
        # An empty spec is one: that is how a request switches the default off.
        if spec.steering is not None or self._default_steering is None:
            return spec
        steered = replace(spec, steering=self._default_steering)
        if is_long(steered):
            return await asyncio.to_thread(self._fitted, steered, self._default_steering)
        return self._fitted(steered, self._default_steering)

    def _read(self, message: generation_pb2.GenerationSpec) -> GenerationSpec:
        spec, faults = read_generation_spec(message)
        if faults:  # the model would judge the rest; its findings belong into the same answer
            raise InvalidRequestError([*faults, *self._others(spec, faults)][: limits.MAX_VIOLATIONS])
        if self._log_prompts:
            note(prompt=_readable(spec.prompt))
        return spec

    def _fitted(self, steered: GenerationSpec, default: SteeringSpec) -> GenerationSpec:
        ids, faults = self._model.judge(steered)
        prompt = steered.prompt if ids is None else PromptIds(ids)  # not to be tokenized again
        return replace(steered, prompt=prompt, steering=fitting(default, faults))

    def _others(self, spec: GenerationSpec, faults: Sequence[Violation]) -> list[Violation]:
        """What is wrong with the parts of a request that could be read."""
        unreadable = [fault.field for fault in faults]
        if "prompt" in unreadable:  # nothing may be said of what stands in its place, its length for one
            found = request_violations(spec, self._model.info.facts, self._model.vectors.facts)
        else:
            _, found = self._model.judge(spec)
        return [one for one in found if not any(_overlap(one.field, field) for field in unreadable)]

    async def _items(
        self, spec: GenerationSpec, connection: str
    ) -> AsyncGenerator[StreamDelta | Completion, None]:
        # The side that generates holds the place: a stalled reader whose generation was ended holds none.
        with self._backlog.place(connection, spec.sampling.n):
            turn = partial(self._turns.turn, connection)
            async with aclosing(self._model.stream(spec, turn)) as items:
                async for item in items:
                    if isinstance(item, Completion):
                        self._record(item)
                    yield item

    def _record(self, completion: Completion) -> None:
        self._metrics.completion(completion)
        usage = completion.usage
        notes = NOTES.get() or {}
        if completion.index == 0:  # of all that a request makes it is the first that begins
            note(first_token_seconds=round(usage.first_token_seconds, 6))
        if (applied := completion.applied_steering) is not None:
            note(vectors=sorted({VectorRef.parse(rule.vector).id for rule in applied.rules}))
        note(
            prompt_tokens=usage.prompt_tokens,
            generated_tokens=notes.get("generated_tokens", 0) + usage.generated_tokens,
            steered_rows=notes.get("steered_rows", 0) + usage.steered_rows,
        )
        if self._log_prompts:
            note(completions=[*notes.get("completions", ()), completion.text])


def _readable(prompt: Prompt) -> str | list[int] | list[dict[str, str]]:
    """A prompt as the log tells it: text, ids or messages."""
    if isinstance(prompt, PromptText):
        return prompt.text
    if isinstance(prompt, PromptIds):
        return list(prompt.ids)
    return [asdict(message) for message in prompt.messages]


def _overlap(one: str, other: str) -> bool:
    """Whether one path is a part of the other, or the same."""
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


def _response(completions: Sequence[Completion]) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(results=map(completion_to_proto, completions))


def _messages(item: StreamDelta | Completion) -> Iterator[generation_pb2.StreamGenerateResponse]:
    """The messages for one item: of a delta, first the acts that led to it."""
    if isinstance(item, StreamDelta):
        for act in item.acts:
            yield generation_pb2.StreamGenerateResponse(steering_event=act_to_proto(act, item.index))
        yield generation_pb2.StreamGenerateResponse(delta=delta_to_proto(item))
    else:
        yield generation_pb2.StreamGenerateResponse(result=completion_to_proto(item))
