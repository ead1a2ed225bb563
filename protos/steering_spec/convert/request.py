"""Requests: `GenerationSpec`, from and to protobuf."""

from __future__ import annotations

from itertools import islice

from steering.v1 import generation_pb2
from steering_spec import limits
from steering_spec.convert.steering import read_steering, steering_to_proto
from steering_spec.request import (
    Chat,
    ChatMessage,
    GenerationSpec,
    Prompt,
    PromptIds,
    PromptText,
    SamplingParams,
)
from steering_spec.violation import InvalidRequestError, Violation


def generation_spec_from_proto(message: generation_pb2.GenerationSpec) -> GenerationSpec:
    """Reads a request.

    Raises:
        InvalidRequestError: Something can't be expressed in the types; all such faults at once.
    """
    spec, faults = read_generation_spec(message)
    if faults:
        raise InvalidRequestError(faults)
    return spec


def read_generation_spec(message: generation_pb2.GenerationSpec) -> tuple[GenerationSpec, list[Violation]]:
    """Reads a request, and says what of it can't be expressed in the types.

    In the place of every fault stands something that admission finds nothing wrong with, so that the rest of a
    faulty request can still be judged and all that is wrong with it be said at once.
    """
    faults: list[Violation] = []
    prompt = _prompt_from_proto(message, faults)
    steering = read_steering(message.steering, faults) if message.HasField("steering") else None
    spec = GenerationSpec(
        prompt=prompt,
        sampling=_sampling_from_proto(message.sampling),
        steering=steering,
        model=message.model,
        request_id=message.request_id,
        steering_trace=message.steering_trace,
    )
    return spec, faults


def _prompt_from_proto(message: generation_pb2.GenerationSpec, faults: list[Violation]) -> Prompt:
    kind = message.WhichOneof("prompt")
    if kind == "tokens":
        return PromptIds(tuple(message.tokens.ids))
    if kind == "chat":
        return chat_from_proto(message.chat)
    if kind is None:
        faults.append(Violation("prompt", "no prompt; set one of text, tokens, chat"))
        return PromptText(" ")
    return PromptText(message.text)


def chat_from_proto(message: generation_pb2.Chat) -> Chat:
    """Reads chat messages, one more than their limit at most."""
    some = islice(message.messages, limits.MAX_MESSAGES + 1)
    return Chat(tuple(ChatMessage(one.role, one.content) for one in some), message.final_message_open)


def chat_to_proto(chat: Chat) -> generation_pb2.Chat:
    """Writes chat messages."""
    messages = (generation_pb2.Message(role=one.role, content=one.content) for one in chat.messages)
    return generation_pb2.Chat(messages=messages, final_message_open=chat.final_message_open)


def _sampling_from_proto(message: generation_pb2.SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k if message.HasField("top_k") else None,
        max_tokens=message.max_token_count if message.HasField("max_token_count") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop_sequences[: limits.MAX_STOP_SEQUENCES + 1]),
        min_p=message.min_p if message.HasField("min_p") else 0.0,
        banned_first_ids=tuple(message.banned_first_ids[: limits.MAX_BANNED_FIRST_IDS + 1]),
        n=message.completion_count if message.HasField("completion_count") else 1,
        min_tokens=message.min_token_count,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        top_logprobs=message.top_logprob_count,
    )


def generation_spec_to_proto(spec: GenerationSpec) -> generation_pb2.GenerationSpec:
    """Writes a request.

    Raises:
        ValueError: A number does not fit its field (protobuf's own message says which).
    """
    message = generation_pb2.GenerationSpec(
        model=spec.model, request_id=spec.request_id, steering_trace=spec.steering_trace
    )
    if isinstance(spec.prompt, PromptText):
        message.text = spec.prompt.text
    elif isinstance(spec.prompt, PromptIds):
        message.tokens.ids.extend(spec.prompt.ids)
        message.tokens.SetInParent()
    else:
        message.chat.CopyFrom(chat_to_proto(spec.prompt))
    message.sampling.CopyFrom(_sampling_to_proto(spec.sampling))
    if spec.steering is not None:
        message.steering.CopyFrom(steering_to_proto(spec.steering))
    return message


def _sampling_to_proto(sampling: SamplingParams) -> generation_pb2.SamplingParams:
    if isinstance(sampling.stop, str):  # a sequence too, of its characters
        raise TypeError(f"stop is a sequence of texts; got {sampling.stop!r:.80}")
    return generation_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_token_count=sampling.max_tokens,
        seed=sampling.seed,
        stop_sequences=sampling.stop,
        min_p=sampling.min_p,
        banned_first_ids=sampling.banned_first_ids,
        completion_count=sampling.n,
        min_token_count=sampling.min_tokens,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        top_logprob_count=sampling.top_logprobs,
    )
