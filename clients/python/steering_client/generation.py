"""Calls that generate, described once for both clients, and the reading of their streams. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steering.v1 import generation_pb2
from steering_client.errors import InternalError, InvalidArgumentError
from steering_client.prompts import Prompt, Steering, prompt_of, sampling_of, steering_of
from steering_client.transport import Call, make_call
from steering_spec import (
    Completion,
    GenerationSpec,
    SamplingParams,
    SteeringAct,
    StreamDelta,
    Violation,
    request_violations,
)
from steering_spec.convert.completion import act_from_proto, completion_from_proto, delta_from_proto
from steering_spec.convert.request import generation_spec_to_proto


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate, as callers say it; `Client.generate` describes the fields."""

    prompt: Prompt
    sampling: SamplingParams | None
    steering: Steering | None
    request_id: str
    steering_trace: bool

    @property
    def completion_count(self) -> int:
        """How many completions are asked for."""
        return 1 if self.sampling is None else self.sampling.n

    def one(self) -> Call[Completion]:
        """Asks for one completion in one piece; raises what `all` raises.

        Raises:
            ValueError: Several are asked for.
        """
        if self.completion_count > 1:
            raise ValueError(
                f"generate makes one completion, and n = {self.completion_count} are asked for; use generate_many"
            )
        call = self.all()
        return Call(call.method, call.request, lambda data: call.read(data)[0])

    def all(self) -> Call[tuple[Completion, ...]]:
        """Asks for the completions, each in one piece.

        Raises:
            InvalidArgumentError: Something is wrong; all that can be known without the server, at once.
            TypeError: The prompt, the logit bias or the steering is of a type that none has.
        """
        request = generation_pb2.GenerateRequest(spec=self._message())
        return make_call(
            "GenerationService/Generate",
            request,
            generation_pb2.GenerateResponse,
            lambda r: tuple(map(completion_from_proto, r.results)),
        )

    def streamed(self) -> Call[StreamEvent]:
        """Asks for the completions as they are decoded; raises what `all` raises."""
        request = generation_pb2.StreamGenerateRequest(spec=self._message())
        return make_call(
            "GenerationService/StreamGenerate", request, generation_pb2.StreamGenerateResponse, _stream_event
        )

    def _message(self) -> generation_pb2.GenerationSpec:
        spec = GenerationSpec(
            prompt=prompt_of(self.prompt),
            sampling=sampling_of(self.sampling),
            steering=steering_of(self.steering),
            request_id=self.request_id,
            steering_trace=self.steering_trace,
        )
        if faults := request_violations(spec):
            raise InvalidArgumentError.of(faults)
        try:
            return generation_spec_to_proto(spec)
        except ValueError as error:  # a number too large for its field, or a text that is no Unicode
            raise InvalidArgumentError.of([Violation("", str(error))]) from error


@dataclass(frozen=True, slots=True)
class StreamAct:
    """A steering act, and of which completion it is."""

    index: int
    act: SteeringAct


StreamEvent = StreamAct | StreamDelta | Completion | None


def _stream_event(message: generation_pb2.StreamGenerateResponse) -> StreamEvent:
    match message.WhichOneof("event"):
        case "steering_event":
            event = message.steering_event
            return StreamAct(event.completion_index, act_from_proto(event))
        case "delta":
            return delta_from_proto(message.delta)
        case "result":
            return completion_from_proto(message.result)
        case _:  # an event that only newer clients know
            return None


class StreamReader:
    """Joins the events of one stream: the acts of a completion that came before a delta of it are put into it."""

    def __init__(self, completion_count: int) -> None:
        """Reads the stream of so many completions."""
        self._count = completion_count
        self._acts: dict[int, list[SteeringAct]] = {}
        self._completions: dict[int, Completion] = {}

    def read(self, event: StreamEvent) -> StreamDelta | None:
        """The delta that the event completes, if it does."""
        if isinstance(event, StreamAct):
            self._acts.setdefault(event.index, []).append(event.act)
        elif isinstance(event, Completion):
            self._completions[event.index] = event
        elif event is not None:
            return replace(event, acts=tuple(self._acts.pop(event.index, ())))
        return None

    @property
    def completion(self) -> Completion:
        """The completion.

        Raises:
            ValueError: The stream has several.
            InternalError: The stream has not come to its end.
        """
        if self._count > 1:
            raise ValueError(f"the stream has n = {self._count} completions; use completions")
        return self.completions[0]

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The completions, in order.

        Raises:
            InternalError: The stream has not come to its end.
        """
        if len(self._completions) < self._count:
            raise InternalError("the stream has not come to its end, so there is no completion")
        return tuple(self._completions[index] for index in sorted(self._completions))
